"""An exported encoder in words and whole: what its folder holds, and whether that is what was exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ortserve.export.errors import CheckFailedError
from ortserve.export.proof.integrity import check_external_data, model_digest, read_graph
from ortserve.export.proof.report_text import describe_report
from ortserve.runtime.encoders.encoder import Encoder
from ortserve.runtime.encoders.manifest import EncoderManifest, read_encoder_manifest
from ortserve.runtime.encoders.queue import EncoderInput
from ortserve.runtime.report import Report


def check_encoder(folder: Path) -> EncoderManifest:
    """The manifest of a whole folder.

    Raises `ManifestError` when there is no readable manifest, and `CheckFailedError` when graph, weights or tokenizer
    are missing, damaged or not those the manifest was written for.
    """
    manifest = read_encoder_manifest(folder)
    check_external_data(folder, read_graph(folder, manifest))
    if model_digest(folder, manifest) != manifest.digest:
        raise CheckFailedError(
            f"{folder}: graph, weights or tokenizer.json changed since the export: export the checkpoint again"
        )
    rows = Encoder(folder, manifest).encode([EncoderInput((0, 1)), EncoderInput((1,))])
    if not np.isfinite(rows).all():
        raise CheckFailedError(f"{folder / manifest.graph} runs but computes no usable numbers: export again")
    return manifest


def describe_encoder(manifest: EncoderManifest, report: Report | None) -> str:
    """Aligned lines for a terminal."""
    after = f"{manifest.pooling}, {'normalized' if manifest.normalized else 'not normalized'}"
    rows = [
        ("name", f"{manifest.name} ({manifest.family}, {manifest.precision}, {manifest.task})"),
        ("source", manifest.source),
        ("exporter", manifest.exporter),
        ("digest", manifest.digest),
        ("size", f"{manifest.num_parameters:,} parameters, {manifest.weight_bytes / 1e6:,.1f} MB of weights"),
        ("inputs", f"at most {manifest.max_length:,} tokens of {manifest.vocab_size:,} ids"),
        ("outputs", f"{manifest.num_outputs} numbers: {after if manifest.task == 'embeddings' else manifest.pooling}"),
        ("dimensions", ", ".join(map(str, (*manifest.dimensions, manifest.num_outputs)))),
        ("prompts", ", ".join(f"{name} {text!r}" for name, text in manifest.prompts.items()) or "none"),
        *(("note", note) for note in manifest.notes),
    ]
    lines = [f"{label:12} {text}" for label, text in rows]
    return "\n".join([*lines, *describe_report(report)]) + "\n"
