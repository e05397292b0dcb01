"""The model card of an exported folder: what it is, how to serve and verify it, and its proof. Text only.

Front matter as the Hugging Face hub reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from ortserve.runtime.encoders.manifest import EncoderManifest
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.report import REPORT_NAME, Report

PIPELINES = {"generate": "text-generation", "embeddings": "feature-extraction", "rerank": "text-ranking"}


def model_card(manifest: Manifest | EncoderManifest, report: Report) -> str:
    """README.md of the folder."""
    parts = [
        _front_matter(manifest, report),
        f"# {manifest.name} ({manifest.precision}, ONNX)",
        _introduction(manifest, report),
        _verdict(report),
        "## Use",
        _use(manifest, report),
        "## What it is",
        _table(("", ""), list(_facts(manifest, report))),
        "## Proof",
        *_proof(report),
        "## Files",
        _table(
            ("File", "Bytes", "SHA-256"),
            [(file.name, f"{file.num_bytes:,}", f"`{file.sha256}`") for file in report.files],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: Manifest | EncoderManifest, report: Report) -> str:
    task = manifest.task if isinstance(manifest, EncoderManifest) else "generate"
    fields: dict[str, object] = {"library_name": "ortserve", "pipeline_tag": PIPELINES[task]}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", report.source):
        fields["base_model"] = report.source
        fields["base_model_relation"] = "quantized"
    if report.license:
        fields["license"] = report.license
    fields["tags"] = ["onnx", "onnxruntime", "ortserve", manifest.family, manifest.precision]
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]  # JSON is YAML
    return "\n".join(["---", *lines, "---"])


def _introduction(manifest: Manifest | EncoderManifest, report: Report) -> str:
    kind = "a sentence encoder" if isinstance(manifest, EncoderManifest) else "a decoder with KV-cache inputs"
    source = report.source or "an unnamed checkpoint"
    return (
        f"`{source}` exported by ortserve to ONNX Runtime, {kind}."
        f" `manifest.json` says how it is run, `{REPORT_NAME}` how it was proved; this page repeats both for people."
    )


def _verdict(report: Report) -> str:
    if report.verified:
        return "**Verified**: every check of its precision passed against an independent float32 reference."
    reasons = "\n".join(f"- {finding}" for finding in report.findings)
    return f"**Unverified**: do not rely on it. `ortserve serve` refuses it without `--allow-unverified`.\n\n{reasons}"


def _use(manifest: Manifest | EncoderManifest, report: Report) -> str:
    option = "" if report.verified else " --allow-unverified"
    against = report.source or "CHECKPOINT"
    adapter = " --adapter ADAPTER" if isinstance(manifest, Manifest) and manifest.adapter is not None else ""
    return (
        "```bash\n"
        f"pip install 'ortserve[{_extra(manifest)}]'\n"
        f"ortserve serve .{option}           # OpenAI's HTTP API on http://127.0.0.1:8000/v1\n"
        "ortserve verify .          # every file is as it was proved\n"
        f"ortserve verify . --against {against}{adapter}  # measure again\n"
        "```"
    )


def _extra(manifest: Manifest | EncoderManifest) -> str:
    return "cuda" if isinstance(manifest, Manifest) and manifest.kv.kind == "pages" else "cpu"


def _facts(manifest: Manifest | EncoderManifest, report: Report) -> Iterator[tuple[str, str]]:
    yield "Source", report.source or "not stated"
    yield "Licence", report.license or "not stated by the checkpoint: see its source"
    yield "Family", manifest.family
    yield "Precision", manifest.precision
    yield "Parameters", f"{manifest.num_parameters:,}"
    yield "Weights", f"{manifest.weight_bytes:,} bytes, {report.bits_per_weight:g} bits per parameter"
    if isinstance(manifest, EncoderManifest):
        yield "Inputs", f"at most {manifest.max_length:,} tokens"
        yield "Outputs", f"{manifest.num_outputs:,} numbers ({manifest.pooling})"
        yield "Made by", manifest.via
    else:
        if manifest.path:
            yield "Made by", manifest.path
        yield "Context", f"{manifest.max_context:,} tokens"
        yield "Recipes", _recipes(manifest) or "not stated"
        if manifest.adapter is not None:
            yield "Adapter", f"{manifest.adapter.name}, merged (rank {manifest.adapter.rank})"
    yield "Versions", _numbers(report.versions)
    if report.optimum_versions:
        yield "Versions in optimum's environment", _numbers(report.optimum_versions)


def _numbers(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _recipes(manifest: Manifest) -> str:
    """How many matrices are stored and rounded in which way."""
    counts: dict[str, int] = {}
    for matrix in manifest.matrices:
        details = [] if matrix.block_size is None else [f"in blocks of {matrix.block_size}"]
        if matrix.rounding == "static":
            details.append("inputs rounded by calibrated scales")
        elif matrix.rounding != "none":
            details.append(f"inputs rounded per {matrix.rounding}")
        kind = f"{matrix.precision}{' (' + ', '.join(details) + ')' if details else ''}"
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} matrices {kind}" for kind, count in sorted(counts.items()))


def _proof(report: Report) -> Iterator[str]:
    proof = report.parity or report.encoder
    if proof is None:
        yield "None: nothing was measured."
        return
    yield f"Reference: {proof.reference}."
    parity = report.parity
    if parity is not None:
        yield _table(
            ("Logits", "Positions", "Largest error", "Mean KL", "Largest KL", "Same best token"),
            [
                (
                    case.name,
                    str(case.num_positions),
                    f"{case.max_abs_error:.2e}",
                    f"{case.mean_kl:.2e}",
                    f"{case.max_kl:.2e}",
                    f"{case.top1_agreement:.1%}",
                )
                for case in parity.cases
            ],
        )
        if parity.perplexity is not None:
            found = parity.perplexity
            yield (
                f"Perplexity of {found.num_tokens} held-out tokens: {found.graph:.4f}, reference"
                f" {found.reference:.4f} ({found.ratio - 1:+.2%})."
            )
        if parity.greedy is not None:
            agreed = parity.greedy
            yield f"Greedy agreement: the first {agreed.agreed} of {agreed.num_tokens} tokens are the reference's."
    yield _table(
        ("Check", "Measured", "Limit", "Verdict"),
        [
            (check.name, f"{check.measured:.4g}", f"{check.bound} {check.limit:.4g}", _verdict_of(check.passed))
            for check in report.checks
        ],
    )


def _verdict_of(passed: bool) -> str:
    return "passed" if passed else "**failed**"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
