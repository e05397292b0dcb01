"""What an export will write: precision and size of every matrix. Decides recipes; reads and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture, Experts, Layer, Linear, Mlp
from ortserve.export.errors import ExportError
from ortserve.export.recipes.calibrate import head_linear
from ortserve.export.recipes.kv_scales import KvRanges, KvScales, kv_scales
from ortserve.export.recipes.layer_plan import LayerPlan, MatrixPlan, MlpPlan
from ortserve.export.recipes.precisions import (
    BLOCK_SIZES,
    CPU_FORMS,
    CUDA_BLOCK_SIZE,
    DEVICE_KV,
    DEVICE_PRECISIONS,
    FORMS,
    PRECISIONS,
    Device,
    Forms,
    KvPrecision,
    Precision,
    default_block_size,
)
from ortserve.export.recipes.recipe import Calibration, choose_recipe
from ortserve.export.recipes.takeover import REQUANTIZE, BlockFormat
from ortserve.runtime.manifest import FloatType

WIDE_HEAD_PAGE = 128  # tokens; below these sizes attention leaves FlashAttention for far slower kernels
NARROW_HEAD_PAGE = 256  # for heads of at most 64


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
    forms: Forms = CPU_FORMS
    floats: FloatType = "float32"  # type of activations and unquantized weights
    kv: KvPrecision = "float"
    kv_scales: tuple[KvScales, ...] = ()  # of every layer, once they are calibrated; none for float

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
    def rotary_bounds(self) -> tuple[int, ...]:
        """Tokens of the longest request of each rotary regime, rising; the last is the context."""
        return self.architecture.rotary_bounds(self.max_context)

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

    def products(self) -> Iterator[MatrixPlan]:
        """Every matrix that is multiplied by, in graph order."""
        for layer in self.layers:
            yield from layer.matrices
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
        tables = sum(self.rotary_bounds) * sum(rope.rotary_dim for rope in self.architecture.ropes())
        floats = tables + self._num_norm_parameters
        num_scales = 0 if self.kv == "float" else 2 * len(self.layers) * self.architecture.key_size
        return sum(matrix.num_bytes for matrix in self.matrices()) + _float_bytes(self.floats) * floats + 4 * num_scales

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
    calibration: Calibration | None = None,
    caution: int = 0,
    taken: Mapping[Linear, BlockFormat] | None = None,
    kv: KvPrecision = "float",
    kv_ranges: KvRanges | None = None,
    forms: Forms | None = None,
) -> ExportPlan:
    """Assign a recipe to every matrix. Raises `ExportError` for options that do not fit the model or the device.

    int4 keeps the embedding and the output matrix wider (int8; on CUDA the embedding has the activations' type): the
    last product decides between close tokens. `caution` says how many proofs have failed; see `choose_recipe`. No
    `forms` are the device's.
    """
    if device != "cpu" and any(isinstance(layer.mlp, Experts) for layer in architecture.layers):
        raise ExportError(f"{architecture.family} has experts, which are exported for the CPU only: leave out --device")
    inner = _choose_precision(precision, device, block_size)
    if taken and block_size is not None:
        raise ExportError("--block-size: blocks are the quantized checkpoint's own; leave it out, or add --requantize")
    context = _choose_context(architecture, max_context)
    floats = _choose_floats(architecture, inner, device)
    if taken and floats == "bfloat16":
        raise ExportError(f"{architecture.family} runs in bfloat16 on CUDA, which rounds stored scales: {REQUANTIZE}")
    forms = forms or FORMS[device]
    outer: Precision = inner
    if inner == "int4":
        outer = "int8" if device == "cpu" else "bf16" if floats == "bfloat16" else "fp16"
    head = forms.head if inner == "int4" and forms.head != "float" and not taken else outer
    planner = _Planner(
        architecture,
        inner,
        outer,
        head,
        device,
        forms,
        block_size or default_block_size(device),
        _float_bytes(floats),
        calibration or Calibration(),
        caution,
        taken or {},
    )
    if kv not in DEVICE_KV[device]:
        choices = ", ".join(DEVICE_KV[device])
        raise ExportError(f"--kv {kv} is not for {device}: choose {choices}, or another --device")
    layers = tuple(planner.layer(index, layer) for index, layer in enumerate(architecture.layers))
    scales: tuple[KvScales, ...] = ()
    if kv_ranges is not None:
        scales = kv_scales(architecture, kv_ranges, kv, [layer.qkv.value_divisor(architecture) for layer in layers])
    return ExportPlan(
        architecture=architecture,
        precision=inner,
        max_context=context,
        embedding=planner.embedding(),
        layers=layers,
        lm_head=planner.lm_head(),
        device=device,
        forms=forms,
        floats=floats,
        kv=kv,
        kv_scales=scales,
    )


@dataclass(frozen=True, slots=True)
class _Planner:
    """Gives every matrix its precision, its recipe, and the divisors it takes over from what reads it."""

    architecture: Architecture
    precision: Precision
    outer: Precision  # of the embedding
    head: Precision  # of the output matrix
    device: Device
    forms: Forms
    block_size: int
    float_bytes: int
    calibration: Calibration
    caution: int
    taken: Mapping[Linear, BlockFormat]

    def layer(self, index: int, layer: Layer) -> LayerPlan:
        architecture = self.architecture
        query, hidden = architecture.query_size, architecture.hidden_size
        name = f"layers.{index}"
        attention = layer.attention
        output = self._matrix(f"{name}.attention_output", attention.output, hidden, query)
        router, mlps = self._feed_forward(name, layer.mlp)
        return LayerPlan(
            index=index,
            layer=layer,
            qkv=self._matrix(
                f"{name}.qkv",
                attention.qkv,
                query + 2 * architecture.key_size,
                hidden,
                row_divisor=self._value_divisor(output.column_factor),
            ),
            attention_output=output,
            router=router,
            mlps=mlps,
        )

    def _feed_forward(self, name: str, mlp: Mlp | Experts) -> tuple[MatrixPlan | None, tuple[MlpPlan, ...]]:
        """The router stays float: it decides between close scores, and is small."""
        if isinstance(mlp, Mlp):
            return None, (self._mlp(name, mlp, self.architecture.intermediate_size),)
        mlps = tuple(
            self._mlp(f"{name}.experts.{index}", expert, mlp.intermediate_size)
            for index, expert in enumerate(mlp.experts)
        )
        router = replace(
            mlps[0].gate, name=f"{name}.router", linear=mlp.router, num_rows=len(mlps), precision="fp32"
        )  # its input's divisor is theirs
        return router, mlps

    def _mlp(self, name: str, mlp: Mlp, inner: int) -> MlpPlan:
        hidden = self.architecture.hidden_size
        down = self._matrix(f"{name}.down", mlp.down, hidden, inner)
        gate = self._matrix(f"{name}.gate", mlp.gate, inner, hidden)
        up = self._matrix(f"{name}.up", mlp.up, inner, hidden, row_divisor=down.column_factor)
        return MlpPlan(mlp, gate, up, down, self._stacked(f"{name}.gate_up", gate, up))

    def _stacked(self, name: str, gate: MatrixPlan, up: MatrixPlan) -> MatrixPlan | None:
        """Both as one product, where that is the form and they are alike."""
        linears = (gate.linear, up.linear)
        if (
            self.forms.gate_up == "apart"
            or gate.bits is None
            or (gate.precision, gate.recipe) != (up.precision, up.recipe)
            or any(linear.biases or linear.rows is not None or linear.scale != 1.0 for linear in linears)
            or gate.taken is not None
            or up.taken is not None
        ):
            return None
        both = Linear(gate.linear.weights + up.linear.weights)
        of_up = up.row_divisor
        divisor = None if of_up is None else np.concatenate([np.ones(gate.num_rows, np.float32), of_up])
        return replace(gate, name=name, linear=both, num_rows=gate.num_rows + up.num_rows, row_divisor=divisor)

    def lm_head(self) -> MatrixPlan:
        architecture = self.architecture
        head = self._matrix("lm_head", head_linear(architecture), architecture.vocab_size, architecture.hidden_size)
        if head.recipe is None:
            return head
        # calibrated without the scale of the logits, which the last norm takes over
        return replace(head, recipe=replace(head.recipe, scale=head.recipe.scale * architecture.final_scale))

    def embedding(self) -> MatrixPlan:
        """As precise as the output matrix, and with its divisors where both are the same bytes."""
        head, linear = self.lm_head(), Linear((self.architecture.embedding,))
        if self.architecture.tied and self.head == self.outer:
            return replace(head, name="embedding", linear=linear)
        return replace(
            head, name="embedding", linear=linear, precision=self.outer, recipe=None, taken=None, has_blocks=False
        )

    def _matrix(
        self,
        name: str,
        linear: Linear,
        num_rows: int,
        num_columns: int,
        *,
        row_divisor: NDArray[np.float32] | None = None,
    ) -> MatrixPlan:
        taken = self.taken.get(linear)
        wanted = self.head if name == "lm_head" else self.precision
        if taken is not None:
            wanted = "int4" if taken.bits == 4 else "int8"
        elif self.taken and name != "lm_head":
            wanted = "fp32"  # its author left it as it was
        options, exact = self.calibration.options.get(linear), "fp32" if self.device == "cpu" else self.outer
        precision, recipe = choose_recipe(options, wanted, self.caution, exact=exact)
        return MatrixPlan(
            name,
            linear,
            num_rows,
            num_columns,
            precision,
            self.block_size,
            float_bytes=self.float_bytes,
            recipe=recipe,
            row_divisor=row_divisor,
            taken=taken,
            has_blocks=self.device == "cuda",
        )

    def _value_divisor(self, divisor: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """What the value rows of the stacked projection take over from the output projection's input."""
        if divisor is None:
            return None
        architecture = self.architecture
        group = architecture.num_heads // architecture.num_kv_heads
        of_values = divisor.reshape(-1, group, architecture.head_dim)[:, 0].reshape(-1)
        return np.concatenate([np.ones(architecture.query_size + architecture.key_size, np.float32), of_values])


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
    if not 0 < context <= architecture.max_context:
        raise ExportError(f"max context {context} is outside 1 to {architecture.max_context}, the model's own")
    return context
