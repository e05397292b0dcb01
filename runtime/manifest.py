"""`manifest.json`: what export knew about a model, written down. Nothing here guesses from a model's type.

The graph contract (layout "slots"; T packed tokens, B rows, S longest query, L logit rows, C row capacity):

| input | type | shape | meaning |
|---|---|---|---|
| input_ids | int64 | [T] | packed tokens of all rows, row by row |
| position_ids | int64 | [T] | row of the rotary tables: the token's position from its request's first row on |
| seqlens_k | int32 | [B] | tokens in the row after this step, minus one (0 for an idle row) |
| query_lengths | int32 | [B] | tokens of the row in this step; 0 marks an idle row |
| total_length | int32 | [] | upper bound of the rows' lengths: the capacity C |
| pad_index | int64 | [B, S] | where padded place (b, s) is taken from in [0, T); any valid index for padding |
| unpad_index | int64 | [T] | where packed token t lies in the flattened [B * S] |
| logit_index | int64 | [L] | packed tokens whose logits are wanted |
| past.{i}.key, past.{i}.value | kv.dtype | [B, kv_heads, C, head_dim] | bound to the same memory as present.{i}.* |

Outputs: `logits` float32 [L, vocab_size], `present.{i}.key`, `present.{i}.value`.

Layout "padded" is that of graphs which other exporters made; its contract is `runtime/padded_graph.py`.

The graph contract of layout "pages" (N pages of P tokens in all, M pages of the widest row; the rest as above):

| input | type | shape | meaning |
|---|---|---|---|
| input_ids, position_ids, logit_index | int64 | [T], [T], [L] | as above |
| cumulative_lengths | int32 | [B + 1] | first packed token of each row, then T |
| past_lengths | int32 | [B] | tokens of the row stored before this step |
| page_table | int32 | [B, M] | pages of the row in order; unused entries may be any page |
| slot_mapping | int32 | [T] | where the token is stored, page * P + offset; -1: nowhere (a padding token) |
| attention_bounds | int32 | [3], on the host | bounds: longest query, longest row, shortest row (at most its length) |
| past.{i}.key, past.{i}.value | kv.dtype | [N, P, kv_heads, head_dim] | bound to the same memory as present.{i}.* |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import msgspec

from ortserve.runtime.errors import ManifestError
from ortserve.runtime.padded_graph import PaddedGraph

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
FloatType: TypeAlias = Literal["float32", "float16", "bfloat16"]
KvType: TypeAlias = Literal["float32", "float16", "bfloat16", "int8", "float8e4m3fn"]
_ITEM_BYTES: Mapping[KvType, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8e4m3fn": 1}

Decoded = TypeVar("Decoded")


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Shape of the KV cache; all layers alike."""

    kind: Literal["slots", "pages", "padded"]
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: KvType
    page_size: int | None = None  # tokens; what the attention kernel wants, in layout "pages" alone

    @property
    def item_bytes(self) -> int:
        """Of one value."""
        return _ITEM_BYTES[self.dtype]

    @property
    def is_quantized(self) -> bool:
        """Stored by codes and scales, which the graph holds."""
        return self.item_bytes == 1

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of all layers, in bytes."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.item_bytes


@dataclass(frozen=True, slots=True)
class RotaryRegime:
    """Requests of up to so many tokens, prompt and reply, rotate alike: see `runtime/rotary.py`."""

    max_tokens: int
    first_row: int  # of the rotary tables, where position 0 is


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling values the model's author recommends; None: not stated."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class MatrixFacts:
    """How one matrix product is computed."""

    name: str
    precision: str
    rounding: str  # of the input: none, token, static (a calibrated scale), block
    folded: bool  # outlier channels of the input are folded into what computes it
    error: float | None  # root mean square of |rounded - exact| / |exact| on calibration text; None: not measured
    block_size: int | None = None  # columns that share a scale; None: floats, or a scale for every row

    @property
    def has_blocks(self) -> bool:
        """Codes with a scale for each block of columns; folders of 0.1 say so by the rounding alone."""
        return self.block_size is not None or self.rounding == "block"


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """A LoRA adapter that was merged into the weights."""

    name: str  # folder name; never a machine path
    rank: int
    alpha: float
    rank_stabilized: bool
    num_matrices: int
    digest: str  # sha256 over its configuration and weights


@dataclass(frozen=True, slots=True)
class TakenFacts:
    """Matrices that were quantized in the checkpoint, and are its own integers, scales and zero points."""

    method: str  # awq or gptq
    bits: int
    group_size: int | None  # columns; None: a row is one group
    num_matrices: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything the runtime and the gateway need to know about an exported model."""

    format_version: int
    name: str
    family: str
    precision: str
    digest: str  # sha256 over graph, weights and tokenizer; part of the system fingerprint and of cache keys
    graph: str  # file name beside the manifest
    min_onnxruntime: str
    kv: KvLayout
    hidden_size: int
    num_heads: int
    vocab_size: int  # width of the logits, often padded
    num_tokens: int  # ids the tokenizer knows; larger ids are never drawn
    max_context: int  # tokens the rotary tables cover: of one request
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    add_bos: bool  # the tokenizer itself does not add it, and the model expects it
    num_parameters: int
    weight_bytes: int
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    source: str = ""  # folder name or hub id; never a machine path
    exporter: str = ""  # ortserve and library versions
    adapter: AdapterFacts | None = None
    taken: TakenFacts | None = None
    padded: PaddedGraph | None = None  # of layout "padded" alone
    imported: bool = False  # the folder is another exporter's: of its files only manifest and report are ours
    path: str = ""  # which way a graph came that ortserve did not build, and why
    matrices: tuple[MatrixFacts, ...] = ()
    rotary_regimes: tuple[RotaryRegime, ...] = ()  # shortest first; empty: all requests rotate alike
    kind: Literal["decoder"] = "decoder"  # encoders have a manifest of their own: runtime/encoders/manifest.py

    @property
    def has_codes(self) -> bool:
        """Some matrices are stored in codes with a scale for each block of columns."""
        return self.taken is not None or any(matrix.has_blocks for matrix in self.matrices)

    @property
    def short_context(self) -> int:
        """Tokens within which all requests rotate alike."""
        return self.rotary_regimes[0].max_tokens if self.rotary_regimes else self.max_context


class ManifestHead(msgspec.Struct, frozen=True):
    """What every manifest begins with."""

    format_version: int
    kind: str = "decoder"  # or encoder


def read_manifest(folder: Path) -> Manifest:
    """Read and validate `folder/manifest.json` of a model that generates.

    Raises `ManifestError` when it is missing, not JSON, of the wrong shape, of another format version, or an encoder's.
    """
    data, head = read_head(folder)
    if head.kind != "decoder":
        raise ManifestError(
            f"{folder} holds an {head.kind}, and a model that generates text is needed here: name another folder"
        )
    return decode_manifest(folder, data, Manifest)


def read_head(folder: Path) -> tuple[bytes, ManifestHead]:
    """The manifest's bytes and what all kinds of manifests begin with. Raises `ManifestError`."""
    path = folder / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(
            f"{folder} has no {MANIFEST_NAME}: export the checkpoint first (ortserve export SRC DST)"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}): check the folder and its permissions") from None
    try:
        head = msgspec.json.decode(data, type=ManifestHead)
    except msgspec.MsgspecError as error:
        raise ManifestError(f"{path} is not a manifest ({error}): export the checkpoint again") from None
    if head.format_version != FORMAT_VERSION:
        raise ManifestError(
            f"{path} has format version {head.format_version}, this ortserve reads {FORMAT_VERSION}:"
            " export the checkpoint again"
        )
    return data, head


def decode_manifest(folder: Path, data: bytes, kind: type[Decoded]) -> Decoded:
    """The bytes as a manifest of one kind. Raises `ManifestError`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise ManifestError(f"{folder / MANIFEST_NAME} is damaged ({error}): export the checkpoint again") from None


def manifest_json(manifest: object) -> bytes:
    """The file's content: indented JSON, stable key order."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
