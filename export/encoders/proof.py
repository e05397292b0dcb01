"""Compares an exported encoder with what the reference computed for the same texts. Knows no graph and no optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from ortserve.export.errors import ExportError
from ortserve.export.proof.verdict import all_pass, check_encoder_proof
from ortserve.runtime.encoders.encoder import Encoder
from ortserve.runtime.encoders.manifest import EncoderManifest
from ortserve.runtime.encoders.queue import EncoderInput
from ortserve.runtime.parity import EncoderCase, EncoderProof

# Of the worst text: the least cosine, and the largest error of any number relative to the text's largest number.
LIMITS = {"fp32": (0.99999, 1e-3), "int8": (0.99, 0.2)}
SCORE_LIMITS = {"fp32": (0.99999, 1e-3), "int8": (0.99, 0.1)}

Rows = NDArray[np.float32]
Limits = tuple[float, float]  # the least cosine and the largest error


def prove(
    folder: Path,
    manifest: EncoderManifest,
    *,
    reference: Rows,
    texts: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    against: str,
) -> EncoderProof:
    """Encode the texts (or pairs) alone and in one padded batch, and compare both with `reference`."""
    inputs = tokenize(folder, manifest, texts, pairs)
    encoder = Encoder(folder, manifest)
    alone = np.concatenate([encoder.encode([one]) for one in inputs])
    together = encoder.encode(inputs)
    embeds = manifest.task == "embeddings"
    compare = compare_embeddings if embeds else compare_scores
    limits = (LIMITS if embeds else SCORE_LIMITS)[manifest.precision]
    cases = (
        compare("one by one", alone, reference, limits),
        compare("one batch", together, reference, limits),
    )
    return _judged(against, cases)


def with_float_proof(proof: EncoderProof, in_float: EncoderProof) -> EncoderProof:
    """The proof of rounded weights together with that of the same graph in float32, under its own limits."""
    cases = tuple(replace(case, name=f"float32 {case.name}") for case in in_float.cases)
    return _judged(proof.reference, (*proof.cases, *cases))


def _judged(reference: str, cases: tuple[EncoderCase, ...]) -> EncoderProof:
    proof = EncoderProof(reference, True, cases)
    return replace(proof, passed=all_pass(check_encoder_proof(proof)))


def tokenize(
    folder: Path, manifest: EncoderManifest, texts: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> list[EncoderInput]:
    """As the reference does: the model's tokenizer, cut at its largest length. Raises `ExportError` without one."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ExportError(f"{folder.name} has no tokenizer.json: save the checkpoint with a fast tokenizer")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(manifest.max_length)
    encodings = tokenizer.encode_batch([*texts] if manifest.task == "embeddings" else [*pairs])
    return [EncoderInput(tuple(one.ids), one.type_ids.index(1) if 1 in one.type_ids else None) for one in encodings]


def compare_embeddings(name: str, rows: Rows, reference: Rows, limits: Limits) -> EncoderCase:
    """Text by text."""
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(reference, axis=1)
    cosines = (rows * reference).sum(axis=1) / np.maximum(lengths, 1e-12)
    errors = np.abs(rows - reference).max(axis=1) / np.maximum(np.abs(reference).max(axis=1), 1e-12)
    return EncoderCase(name, len(rows), float(cosines.min()), float(cosines.mean()), float(errors.max()), *limits)


def compare_scores(name: str, rows: Rows, reference: Rows, limits: Limits) -> EncoderCase:
    """All pairs together: the correlation of the scores, and the largest error relative to their spread."""
    left, right = rows[:, 0] - rows.mean(), reference[:, 0] - reference.mean()
    correlation = float(left @ right / max(float(np.linalg.norm(left) * np.linalg.norm(right)), 1e-12))
    spread = max(float(reference.max() - reference.min()), 1e-12)
    error = float(np.abs(rows - reference).max()) / spread
    return EncoderCase(name, len(rows), correlation, correlation, error, *limits)
