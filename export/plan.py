"""What an export will write: precision and size of every matrix. Decides recipes; reads and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ortserve.export.architecture import Architecture, Layer, Linear
from ortserve.export.errors import ExportError
from ortserve.runtime.manifest import FloatType

Precision = Literal["fp32", "int8", "int4", "fp16", "bf16"]
Device = Literal["cpu", "cuda"]
DEVICE_PRECISIONS: Mapping[Device, tuple[Precision, ...]] = {
    "cpu": ("int8", "int4", "fp32"),
    "cuda": ("bf16", "fp16", "int4"),
}
DEVICES: tuple[Device, ...] = ("cpu", "cuda")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4", "fp16", "bf16")
FLOAT_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
DEFAULT_BLOCK_SIZE = 128
CUDA_BLOCK_SIZE = 32  # the only int4 form that ONNX Runtime's mixed-type CUDA kernels take
WIDE_HEAD_PAGE = 128  # tokens; below these sizes attention leaves FlashAttention for far slower kernels
NARROW_HEAD_PAGE = 256  # for heads of at most 64
BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """One matrix product of the graph: `[rows, columns]` in the checkpoint's orientation."""

    name: str  # of the value it produces
    linear: Linear
    num_rows: int  # output features
    num_columns: int  # input features
    precision: Precision
    block_size: int  # int4 only
    float_bytes: int = 4  # of scales, biases and unquantized weights

    @property
    def num_bytes(self) -> int:
        """Size in the data file, without alignment."""
        bias = self.float_bytes * self.num_rows if self.linear.biases else 0
        if self.precision in FLOAT_PRECISIONS:
            return self.float_bytes * self.num_rows * self.num_columns + bias
        if self.precision == "int8":
            return self.num_rows * self.num_columns + 4 * self.num_rows + bias
        num_blocks = -(-self.num_columns // self.block_size)
        return self.num_rows * num_blocks * (self.block_size // 2 + self.float_bytes) + bias


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer and its matrices."""

    index: int
    layer: Layer
    qkv: MatrixPlan
    attention_output: MatrixPlan
    gate: MatrixPlan
    up: MatrixPlan
    down: MatrixPlan

    @property
    def matrices(self) -> tuple[MatrixPlan, ...]:
        """In graph order."""
        return (self.qkv, self.attention_output, self.gate, self.up, self.down)


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """Everything decided before the first byte is written."""

    architecture: Architecture
    precision: Precision
    max_context: int  # tokens the rotary tables cover
    embedding: MatrixPlan  # looked up by row, never multiplied
    layers: tuple[LayerPlan, ...]
    lm_head: MatrixPlan
    device: Device = "cpu"
    floats: FloatType = "float32"  # type of activations and unquantized weights

    @property
    def is_paged(self) -> bool:
        """Keys and values lie in pages instead of rows."""
        return self.device == "cuda"

    @property
    def page_size(self) -> int | None:
        """Tokens of a page; None without pages."""
        if not self.is_paged:
            return None
        return NARROW_HEAD_PAGE if self.architecture.head_dim <= 64 else WIDE_HEAD_PAGE

    @property
    def shares_embedding(self) -> bool:
        """Lookup and output matrix are the same bytes in the file."""
        return self.architecture.tied and self.embedding.precision == self.lm_head.precision

    def matrices(self) -> Iterator[MatrixPlan]:
        """Every matrix that is written, once."""
        yield self.embedding
        for layer in self.layers:
            yield from layer.matrices
        if not self.shares_embedding:
            yield self.lm_head

    @property
    def num_parameters(self) -> int:
        """As the checkpoint counts them: a tied matrix once."""
        matrices = sum(
            matrix.num_rows * matrix.num_columns + (matrix.num_rows if matrix.linear.biases else 0)
            for matrix in self.matrices()
        )
        if self.architecture.tied and not self.shares_embedding:
            matrices -= self.lm_head.num_rows * self.lm_head.num_columns
        return matrices + self._num_norm_parameters

    @property
    def num_bytes(self) -> int:
        """Size of the data file, without alignment."""
        tables = self.max_context * sum(rope.rotary_dim for rope in self.architecture.ropes())
        floats = tables + self._num_norm_parameters
        return sum(matrix.num_bytes for matrix in self.matrices()) + _float_bytes(self.floats) * floats

    @property
    def _num_norm_parameters(self) -> int:
        return sum(norm.width for norm in self.architecture.norms())


def plan_export(
    architecture: Architecture,
    *,
    precision: str,
    device: Device = "cpu",
    block_size: int | None = None,
    max_context: int | None = None,
) -> ExportPlan:
    """Assign a recipe to every matrix. Raises `ExportError` for options that do not fit the model or the device.

    int4 keeps the embedding and the output matrix wider (int8 on the CPU, the activations' type on CUDA): the last
    product decides between close tokens.
    """
    inner = _choose_precision(precision, device, block_size)
    context = _choose_context(architecture, max_context)
    floats = _choose_floats(architecture, inner, device)
    outer: Precision = inner
    if inner == "int4":
        outer = "int8" if device == "cpu" else "bf16" if floats == "bfloat16" else "fp16"
    default_block = DEFAULT_BLOCK_SIZE if device == "cpu" else CUDA_BLOCK_SIZE
    hidden = architecture.hidden_size
    query, inner_size = architecture.query_size, architecture.intermediate_size

    def matrix(name: str, linear: Linear, num_rows: int, num_columns: int, kind: Precision = inner) -> MatrixPlan:
        size = block_size or default_block
        return MatrixPlan(name, linear, num_rows, num_columns, kind, size, _float_bytes(floats))

    layers = tuple(
        LayerPlan(
            index=index,
            layer=layer,
            qkv=matrix(f"layers.{index}.qkv", layer.attention.qkv, query + 2 * architecture.key_size, hidden),
            attention_output=matrix(f"layers.{index}.attention_output", layer.attention.output, hidden, query),
            gate=matrix(f"layers.{index}.gate", layer.mlp.gate, inner_size, hidden),
            up=matrix(f"layers.{index}.up", layer.mlp.up, inner_size, hidden),
            down=matrix(f"layers.{index}.down", layer.mlp.down, hidden, inner_size),
        )
        for index, layer in enumerate(architecture.layers)
    )
    vocabulary = architecture.vocab_size
    return ExportPlan(
        architecture=architecture,
        precision=inner,
        max_context=context,
        embedding=matrix("embedding", Linear((architecture.embedding,)), vocabulary, hidden, outer),
        layers=layers,
        lm_head=matrix("lm_head", Linear((architecture.lm_head,)), vocabulary, hidden, outer),
        device=device,
        floats=floats,
    )


def _choose_precision(precision: str, device: Device, block_size: int | None) -> Precision:
    chosen = next((known for known in DEVICE_PRECISIONS[device] if known == precision), None)
    if precision not in PRECISIONS:
        raise ExportError(f"precision {precision!r} is unknown: choose {', '.join(PRECISIONS)}")
    if chosen is None:
        choices = ", ".join(DEVICE_PRECISIONS[device])
        raise ExportError(f"precision {precision} is not for {device}: choose {choices}, or another --device")
    if block_size is not None and (precision != "int4" or block_size not in BLOCK_SIZES):
        raise ExportError(f"block size {block_size}: int4 takes {', '.join(map(str, BLOCK_SIZES))}, others none")
    if block_size not in (None, CUDA_BLOCK_SIZE) and device == "cuda":
        raise ExportError(
            f"block size {block_size}: the fast int4 kernels of ONNX Runtime on CUDA take {CUDA_BLOCK_SIZE} only"
        )
    return chosen


def _choose_floats(architecture: Architecture, precision: Precision, device: Device) -> FloatType:
    """float16 has the finer steps; models that scale their embedding (Gemma) were trained beyond its range."""
    if device == "cpu":
        return "float32"
    if precision == "int4":
        return "float16" if architecture.embedding_scale == 1.0 else "bfloat16"
    return "float16" if precision == "fp16" else "bfloat16"


def _float_bytes(floats: FloatType) -> int:
    return 4 if floats == "float32" else 2


def _choose_context(architecture: Architecture, max_context: int | None) -> int:
    """The wanted context, or the model's own. Raises `ExportError` for one that the graph could not serve."""
    context = architecture.max_context if max_context is None else max_context
    for rope in architecture.ropes():
        if rope.fixed_context is not None and context > rope.fixed_context:
            raise ExportError(
                f"beyond {rope.fixed_context} tokens this model rotates by how long each request becomes, which the"
                f" runtime cannot choose yet: export it with --max-context {rope.fixed_context} or less"
            )
    if not 0 < context <= architecture.max_context:
        raise ExportError(f"max context {context} is outside 1 to {architecture.max_context}, the model's own")
    return context
