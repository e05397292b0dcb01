"""From a checkpoint to a finished model folder, or to none at all. Knows the order of work, not how a part is done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ortserve.export.architecture import Architecture
from ortserve.export.folder.describe import describe_generation, describe_tokens
from ortserve.export.folder.journal import Journal
from ortserve.export.folder.unfinished import Unfinished, unfinished_folder
from ortserve.export.folder.versions import library_versions, version_of
from ortserve.export.graph.builder import GraphBuilder
from ortserve.export.graph.data_file import DataFile
from ortserve.export.graph.decoder import build_decoder
from ortserve.export.progress import show_progress
from ortserve.export.proof.integrity import DATA_NAME, GRAPH_NAME, file_digest, join_digests
from ortserve.export.proof.report import check_proved, check_replacement, make_report, write_report
from ortserve.export.proof.verify import check_parity
from ortserve.export.recipes.calibration_file import load_calibration, save_calibration
from ortserve.export.recipes.digest import digest_of
from ortserve.export.recipes.kv_scales import measure_kv_ranges
from ortserve.export.recipes.plan import ExportPlan
from ortserve.export.recipes.planned import ExportOptions, first_plan
from ortserve.export.recipes.precisions import Device, Forms, KvPrecision, ReferenceName
from ortserve.export.recipes.recipe import MAX_CAUTION, Calibration
from ortserve.export.recipes.sensitivity import measure_options
from ortserve.export.sources.checkpoint import Checkpoint, open_checkpoint
from ortserve.export.sources.source_facts import SourceFacts, describe_source
from ortserve.runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    KvLayout,
    KvType,
    Manifest,
    RotaryRegime,
    TakenFacts,
    manifest_json,
)
from ortserve.runtime.parity import ParityReport
from ortserve.runtime.report import hash_file

RECIPE = 6  # raise it when the same checkpoint becomes another graph: caches of exports then miss
CALIBRATION, JOURNAL, FAILED = "calibration.npz", "journal", "failed"  # kept for a rerun
MIN_ONNXRUNTIME = "1.32"  # GroupQueryAttention with query_seqlens
MIN_PAGED_ONNXRUNTIME = "1.31.1"  # PagedAttention with slot mapping and attention metadata
KV_DTYPES: Mapping[KvPrecision, KvType] = {"int8": "int8", "fp8": "float8e4m3fn"}
Prove: TypeAlias = Callable[[Path, Manifest], ParityReport]


def export_checkpoint(
    source: str | Path | Checkpoint,
    destination: Path,
    *,
    precision: str | None = None,
    device: Device = "cpu",
    block_size: int | None = None,
    max_context: int | None = None,
    activations: str = "calibrated",
    calibration_text: Path | None = None,
    requantize: bool = False,
    kv: KvPrecision = "float",
    forms: Forms | None = None,
    progress: bool = True,
    verify: bool = True,
    reference: ReferenceName = "auto",
    force: bool = False,
    allow_unproven: bool = False,
) -> Manifest:
    """Export a checkpoint, its folder or hub id into the new folder `destination`.

    No `precision` is the device's first, or that of a quantized checkpoint, whose matrices are taken over unless
    `requantize`. `kv` is what keys and values are stored as, by scales of calibration text; `forms` how a graph is
    spelt, to measure others than the device's. The folder appears
    complete or not at all, with a report of what `verify` measured against the independent reference. A folder that
    is not proved is marked unverified; when the proof fails, `UnprovenError` is raised after it was written, unless
    `allow_unproven`, and one that is verified is not replaced by it. Raises `ExportError` for an unusable checkpoint,
    an existing destination without `force`, or a full disk.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    options = ExportOptions(
        precision,
        device,
        block_size,
        max_context,
        activations,
        calibration_text,
        requantize=requantize,
        kv=kv,
        forms=forms,
    )
    planned = first_plan(checkpoint, options)  # checks the options before minutes are spent on measuring
    architecture, plan = planned.architecture, planned.plan
    measure: Callable[[], Calibration] | None = None
    if planned.calibrates:
        measure = partial(
            measure_options,
            checkpoint,
            architecture,
            precision=plan.precision,
            block_size=planned.block_size,
            weights_only=plan.device == "cuda",
            text=calibration_text,
            progress=progress,
        )
    prove: Prove | None = None
    if verify:
        prove = partial(check_parity, architecture=plan.architecture, checkpoint=checkpoint, reference=reference)
    facts = describe_source(checkpoint)
    key = digest_of((_identity(checkpoint, facts), plan, activations, _content(calibration_text), library_versions()))
    with unfinished_folder(destination, key=key, force=force, marker=MANIFEST_NAME) as work:
        calibration = _calibrate(work.kept / CALIBRATION, architecture, measure)
        plan_with = planned.plan_with
        if kv != "float":
            ranges = measure_kv_ranges(checkpoint, architecture, text=calibration_text)
            plan_with = partial(plan_with, kv_ranges=ranges)
        written, proof = _write_until_proved(work, checkpoint, plan_with, calibration, prove, progress=progress)
        (work.model / MANIFEST_NAME).write_bytes(manifest_json(written.manifest))
        report = make_report(work.model, written.manifest, proof, source=facts, known=written.sha256)
        write_report(work.model, written.manifest, report)
        if verify and not allow_unproven:
            check_replacement(report, destination)
    if verify and not allow_unproven:
        check_proved(report, destination)
    return written.manifest


def _identity(checkpoint: Checkpoint, facts: SourceFacts) -> tuple[object, ...]:
    """Of everything that is read from the checkpoint."""
    files = tuple((name, _content(path)) for name, path in checkpoint.tokenizer_files())
    return (RECIPE, FORMAT_VERSION, facts.digest, checkpoint.name, files, dict(checkpoint.generation_config))


def _content(path: Path | None) -> str:
    return "" if path is None or not path.is_file() else hash_file(path)


def _calibrate(path: Path, architecture: Architecture, measure: Callable[[], Calibration] | None) -> Calibration | None:
    """What an interrupted run has measured, or what is measured now and kept for the case that this one is."""
    if measure is None:
        return None
    kept = load_calibration(path, architecture)
    if kept is not None:
        return kept
    measured = measure()
    save_calibration(path, measured)
    return measured


def _write_until_proved(
    work: Unfinished,
    checkpoint: Checkpoint,
    plan_with: Callable[..., ExportPlan],
    calibration: Calibration | None,
    prove: Prove | None,
    *,
    progress: bool,
) -> tuple[_Written, ParityReport | None]:
    """The model and its proof; with calibration, more cautiously after each proof that fails."""
    failed = work.kept / FAILED
    for caution in range(min(_number(failed), MAX_CAUTION), MAX_CAUTION + 1):
        plan = plan_with(calibration=calibration, caution=caution)
        journal = Journal(work.kept / JOURNAL, digest_of(plan))
        with show_progress(f"export {checkpoint.name} {plan.precision}", plan.num_bytes, wanted=progress) as advance:
            written = _write_model(work.model, plan, checkpoint, advance, journal)
        if prove is None:
            return written, None
        with show_progress(f"prove {checkpoint.name} {plan.precision}", None, wanted=progress):
            proof = prove(work.model, written.manifest)
        if calibration is None or proof.passed:
            break
        failed.write_text(str(caution + 1))
    return written, proof


def _number(path: Path) -> int:
    """How many proofs have failed before the interrupt."""
    text = path.read_text() if path.exists() else ""
    return int(text) if text.isdecimal() else 0


@dataclass(frozen=True, slots=True)
class _Written:
    """A model in its folder, but for its manifest."""

    manifest: Manifest
    sha256: Mapping[str, str]  # of files, hexadecimal, by name


def _write_model(
    folder: Path, plan: ExportPlan, checkpoint: Checkpoint, advance: Callable[[int], None], journal: Journal
) -> _Written:
    tokens = describe_tokens(checkpoint, plan.architecture.vocab_size)
    with DataFile(folder / DATA_NAME, progress=advance, journal=journal) as data:
        graph = GraphBuilder(data, floats=plan.floats)
        build_decoder(graph, plan, checkpoint)
        data_digest = data.sha256
        weight_bytes = data.num_bytes
    serialized = graph.model(name=checkpoint.name, producer_version=version_of("ortserve")).SerializeToString()
    (folder / GRAPH_NAME).write_bytes(serialized)
    checkpoint.copy_tokenizer(folder)
    graph_digest, tokenizer_digest = hashlib.sha256(serialized).digest(), file_digest(folder / "tokenizer.json")
    architecture = plan.architecture
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=checkpoint.name,
        family=architecture.family,
        precision=plan.precision,
        digest=join_digests(graph_digest, data_digest, tokenizer_digest),
        graph=GRAPH_NAME,
        min_onnxruntime=MIN_PAGED_ONNXRUNTIME if plan.is_paged else MIN_ONNXRUNTIME,
        kv=KvLayout(
            "pages" if plan.is_paged else "slots",
            len(plan.layers),
            architecture.num_kv_heads,
            architecture.head_dim,
            KV_DTYPES.get(plan.kv, plan.floats),
            plan.page_size,
        ),
        hidden_size=architecture.hidden_size,
        num_heads=architecture.num_heads,
        vocab_size=architecture.vocab_size,
        num_tokens=tokens.num_tokens,
        max_context=plan.max_context,
        rotary_regimes=_regimes(plan.rotary_bounds),
        eos_token_ids=tokens.eos_token_ids,
        bos_token_id=tokens.bos_token_id,
        add_bos=tokens.add_bos,
        num_parameters=plan.num_parameters,
        weight_bytes=weight_bytes,
        generation=describe_generation(checkpoint),
        source=checkpoint.source,
        adapter=checkpoint.adapter,
        taken=_describe_taken(checkpoint, plan),
        matrices=tuple(matrix.facts() for matrix in plan.products()),
        exporter=", ".join(f"{name} {version_of(name)}" for name in ("ortserve", "onnx", "onnxruntime")),
    )
    return _Written(manifest, {DATA_NAME: data_digest.hex(), GRAPH_NAME: graph_digest.hex()})


def _describe_taken(checkpoint: Checkpoint, plan: ExportPlan) -> TakenFacts | None:
    packing = checkpoint.packing
    num_matrices = sum(matrix.taken is not None for matrix in plan.products())
    if packing is None or num_matrices == 0:
        return None
    method = "gptq" if packing.layout == "gptq" else "awq"
    return TakenFacts(method, packing.bits, packing.group_size, num_matrices)


def _regimes(bounds: tuple[int, ...]) -> tuple[RotaryRegime, ...]:
    """Their tables are stacked, each with a row for every position."""
    return tuple(RotaryRegime(bound, sum(bounds[:place])) for place, bound in enumerate(bounds))
