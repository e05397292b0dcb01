"""`manifest.json` of an encoder: a graph that turns a padded batch of texts into one row of numbers each.

The graph contract (B texts, S tokens of the longest, D numbers):

| name | type | shape | meaning |
|---|---|---|---|
| input_ids | int64 | [B, S] | tokens with the special ones, padded at the end |
| attention_mask | int64 | [B, S] | 1 for a token, 0 for padding |
| token_type_ids | int64 | [B, S] | only if listed in `inputs`: 0 for the first text of a pair, 1 for the second |
| output | float32 | [B, D] | `output_name`: embeddings, or scores of pairs (D = 1) |

Pooling and normalization are part of the graph. Knows no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ortserve.runtime.errors import ManifestError
from ortserve.runtime.manifest import Manifest, decode_manifest, read_head

EncoderTask = Literal["embeddings", "rerank"]


@dataclass(frozen=True, slots=True)
class EncoderManifest:
    """Everything the runtime and the gateway need to know about an exported encoder."""

    format_version: int
    kind: Literal["encoder"]
    task: EncoderTask
    name: str
    family: str
    precision: Literal["fp32", "int8"]
    digest: str  # sha256 over graph, weights and tokenizer
    graph: str  # file name beside the manifest
    min_onnxruntime: str
    inputs: tuple[str, ...]
    output_name: str
    num_outputs: int  # D: size of an embedding, 1 for scores
    vocab_size: int
    max_length: int  # tokens of one input, special ones included
    pad_token_id: int
    pooling: str  # as people read it: mean, cls, ...
    normalized: bool  # embeddings have length 1
    dimensions: tuple[int, ...]  # shorter sizes the model was trained for; empty: none stated
    prompts: Mapping[str, str]  # by name: put before the text
    default_prompt: str | None  # name of the one used when nobody asks for another
    num_parameters: int
    weight_bytes: int
    via: str  # who made the graph, and why
    source: str = ""  # folder name or hub id; never a machine path
    exporter: str = ""  # ortserve and library versions
    notes: tuple[str, ...] = field(default=())  # what was assumed because the checkpoint does not say it


def read_encoder_manifest(folder: Path) -> EncoderManifest:
    """Read and validate `folder/manifest.json` of an encoder. Raises `ManifestError`."""
    data, head = read_head(folder)
    if head.kind != "encoder":
        raise ManifestError(f"{folder} holds a {head.kind}, and an encoder is needed here: name another folder")
    return decode_manifest(folder, data, EncoderManifest)


def read_any_manifest(folder: Path) -> Manifest | EncoderManifest:
    """The manifest of either kind. Raises `ManifestError`."""
    data, head = read_head(folder)
    if head.kind == "encoder":
        return decode_manifest(folder, data, EncoderManifest)
    return decode_manifest(folder, data, Manifest)
