"""Stores a matrix in its precision and builds the nodes that multiply by it or look rows up. Knows no layers.

int8: activations as unsigned 8 bits around 128 with one scale per row, weights as signed 8 bits with one scale per
output feature; the integer sums are exact and every scale belongs to one row, so a row's result never depends on
its neighbours. Weights keep the checkpoint's orientation (QGemm with transB), so a tied embedding is stored once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from ortserve.export.errors import ExportError
from ortserve.export.graph.builder import MICROSOFT, GraphBuilder
from ortserve.export.recipes.layer_plan import MatrixPlan
from ortserve.export.recipes.precisions import FLOAT_PRECISIONS
from ortserve.export.recipes.quantize import INT8_LIMIT, quantize_int4_blocks, quantize_int8_blocks, quantize_int8_rows
from ortserve.export.recipes.takeover import BlockFormat, read_blocks
from ortserve.export.sources.checkpoint import Checkpoint

CHUNK_ELEMENTS = 1 << 21  # float32 elements quantized at a time: 8 MB, a few copies of which fit the cache budget
ACTIVATION_ZERO = 128
SMALLEST_SCALE = 1e-30  # an all-zero row divides by this instead of zero


def store_matrix(graph: GraphBuilder, plan: MatrixPlan, checkpoint: Checkpoint) -> None:
    """Stream the matrix, its scales and its bias into the data file, unless an interrupted run has done it."""
    graph.unit(plan.name, lambda: _store_matrix(graph, plan, checkpoint))


def _store_matrix(graph: GraphBuilder, plan: MatrixPlan, checkpoint: Checkpoint) -> None:
    linear = plan.linear
    if plan.taken is not None:
        _store_taken(graph, plan, plan.taken, checkpoint)
        return
    chunks = _folded(plan, checkpoint.stacked_chunks(linear.weights, CHUNK_ELEMENTS, rows=linear.rows))
    shape = (plan.num_rows, plan.num_columns)
    if plan.precision in FLOAT_PRECISIONS:
        graph.weight(f"{plan.name}.weight", graph.floats, shape, chunks)
    elif plan.bits is None:
        scales: list[NDArray[np.float32]] = []
        graph.weight(f"{plan.name}.weight", np.int8, shape, _int8(plan, chunks, scales))
        graph.weight(f"{plan.name}.scale", np.float32, (plan.num_rows,), scales)
    else:
        num_blocks = -(-plan.num_columns // plan.block_size)
        scales = []
        packed = (plan.num_rows, num_blocks, plan.block_size * plan.bits // 8)
        graph.weight(f"{plan.name}.weight", np.uint8, packed, _in_blocks(plan, chunks, scales, graph.floats))
        graph.weight(f"{plan.name}.scale", graph.floats, (plan.num_rows, num_blocks), scales)
    if not linear.biases:
        return
    biases = list(_folded(plan, checkpoint.stacked_chunks(linear.biases, CHUNK_ELEMENTS, rows=linear.rows)))
    if _is_static(plan):
        _store_codes_of_bias(graph, plan, np.concatenate(biases), np.concatenate(scales))
    else:
        graph.weight(f"{plan.name}.bias", graph.floats, (plan.num_rows,), biases)


def _store_taken(graph: GraphBuilder, plan: MatrixPlan, form: BlockFormat, checkpoint: Checkpoint) -> None:
    """The checkpoint's integers as they are; only the product's own scale is multiplied into theirs."""
    num_blocks = -(-plan.num_columns // form.block_size)
    scales: list[NDArray[np.float32]] = []
    zeros: list[NDArray[np.uint8]] = []

    def codes() -> Iterator[NDArray[np.uint8]]:
        for blocks in read_blocks(checkpoint, plan.linear, form, CHUNK_ELEMENTS):
            scales.append(blocks.scales * np.float32(plan.linear.scale))
            zeros.append(blocks.zeros)
            yield blocks.codes

    name, num_rows = plan.name, plan.num_rows
    graph.weight(f"{name}.weight", np.uint8, (num_rows, num_blocks, form.block_size * form.bits // 8), codes())
    graph.weight(f"{name}.scale", graph.floats, (num_rows, num_blocks), scales)
    if form.has_zeros:
        graph.weight(f"{name}.zero", np.uint8, (num_rows, -(-num_blocks * form.bits // 8)), zeros)
    if plan.linear.biases:
        biases = checkpoint.stacked_chunks(plan.linear.biases, CHUNK_ELEMENTS, rows=plan.linear.rows)
        graph.weight(f"{name}.bias", graph.floats, (num_rows,), _folded(plan, biases))


def _store_codes_of_bias(
    graph: GraphBuilder, plan: MatrixPlan, bias: NDArray[np.float32], weight_scale: NDArray[np.float32]
) -> None:
    """QGemm adds 32-bit integers in units of both scales: a bias rounds to a part of one code's step."""
    assert plan.recipe is not None
    codes = np.rint(bias.astype(np.float64) / (np.float64(np.float32(plan.recipe.scale)) * weight_scale))
    limit = np.iinfo(np.int32).max // 2  # the sums have the other half
    if np.abs(codes).max(initial=0) > limit:
        raise ExportError(f"{plan.linear.biases[0]} is too large for its calibrated scale: export with per-token ones")
    graph.weight(f"{plan.name}.bias", np.int32, (plan.num_rows,), [codes.astype(np.int32)])


def multiply(graph: GraphBuilder, plan: MatrixPlan, value: str, *, rows: str, stored_as: str | None = None) -> str:
    """`value [T, columns]` times the matrix: `[T, num_rows]`.

    `rows` names a one-dimensional value of length T. `stored_as` is the name of another plan whose stored bytes
    are the same matrix (a tied embedding).
    """
    stored = stored_as or plan.name
    weight, scale = f"{stored}.weight", f"{stored}.scale"
    if plan.precision in FLOAT_PRECISIONS:
        inputs = [value, weight, *([f"{plan.name}.bias"] if plan.linear.biases else [])]
        return graph.node("Gemm", inputs, plan.name, transB=1)
    if _is_static(plan):
        return _multiply_static(graph, plan, value, weight=weight, scale=scale)
    raw = f"{plan.name}.unbiased" if plan.linear.biases else plan.name
    if plan.taken is not None:
        zeros = [f"{stored}.zero"] if plan.taken.has_zeros else []
        inputs = [value, weight, scale, *zeros]
        _multiply_blocks(graph, plan, inputs, raw, bits=plan.taken.bits, block_size=plan.taken.block_size)
    elif plan.bits is None:
        multiply_int8(graph, value, weight=weight, scale=scale, num_rows=plan.num_rows, output=raw, rows=rows)
    else:
        _multiply_blocks(graph, plan, [value, weight, scale], raw, bits=plan.bits, block_size=plan.block_size)
    if plan.linear.biases:
        graph.node("Add", [raw, f"{plan.name}.bias"], plan.name)
    return plan.name


def _multiply_blocks(
    graph: GraphBuilder, plan: MatrixPlan, inputs: list[str], output: str, *, bits: int, block_size: int
) -> None:
    graph.node(
        "MatMulNBits",
        inputs,
        output,
        domain=MICROSOFT,
        bits=bits,
        block_size=block_size,
        K=plan.num_columns,
        N=plan.num_rows,
        **({"accuracy_level": 4} if graph.floats is np.float32 else {}),  # the CPU's integer kernels
    )


def look_up(graph: GraphBuilder, plan: MatrixPlan, ids: str) -> str:
    """Rows of the stored matrix: `ids [T]` to `[T, columns]` float32."""
    weight = f"{plan.name}.weight"
    if plan.precision in FLOAT_PRECISIONS:
        return graph.node("Gather", [weight, ids], plan.name, axis=0)
    codes = graph.node("Gather", [weight, ids], f"{plan.name}.codes", axis=0)
    scales = graph.node("Gather", [f"{plan.name}.scale", ids], f"{plan.name}.scales", axis=0)
    return graph.node("DequantizeLinear", [codes, scales], plan.name, axis=0)


def _is_static(plan: MatrixPlan) -> bool:
    return plan.precision == "int8" and plan.recipe is not None and plan.recipe.rounding == "static"


def _multiply_static(graph: GraphBuilder, plan: MatrixPlan, value: str, *, weight: str, scale: str) -> str:
    """One scale for every row, known before: rounding is one pass, and scales and bias are applied to the sums."""
    assert plan.recipe is not None
    step = graph.constant(f"{value}.step", np.float32(plan.recipe.scale))
    zero = graph.constant("activation_zero", np.uint8(ACTIVATION_ZERO))
    codes = graph.shared(f"{value}.codes", lambda: graph.node("QuantizeLinear", [value, step, zero], f"{value}.codes"))
    inputs = [codes, step, zero, weight, scale, _weight_zeros(graph, plan.name, plan.num_rows)]
    inputs += [f"{plan.name}.bias"] if plan.linear.biases else []
    return graph.node("QGemm", inputs, plan.name, domain=MICROSOFT, transB=1)


def _weight_zeros(graph: GraphBuilder, name: str, num_rows: int) -> str:
    """QGemm wants as many weight zero points as scales, though all are 0.

    They are not shared between matrices: without VNNI, ONNX Runtime rewrites weights and zero points as unsigned,
    matrix by matrix, and refuses a zero point that it has rewritten before.
    """
    return graph.weight(f"{name}.weight_zeros", np.int8, (num_rows,), [np.zeros(num_rows, np.int8)])


def multiply_int8(
    graph: GraphBuilder, value: str, *, weight: str, scale: str, num_rows: int, output: str, rows: str
) -> None:
    """`value [T, columns]` times stored codes `[num_rows, columns]` with their scales: `output [T, num_rows]`."""
    codes, row_scale = quantize_rows(graph, value, rows)
    unscaled = multiply_codes(graph, codes, weight=weight, scale=scale, num_rows=num_rows, output=output)
    graph.node("Mul", [unscaled, row_scale], output)


def multiply_codes(graph: GraphBuilder, codes: str, *, weight: str, scale: str, num_rows: int, output: str) -> str:
    """Unsigned codes `[T, columns]` times stored ones: `[T, num_rows]`, to be multiplied by the rows' scales."""
    one = graph.constant("one", np.float32(1))
    zero = graph.constant("activation_zero", np.uint8(ACTIVATION_ZERO))
    inputs = [codes, one, zero, weight, scale, _weight_zeros(graph, output, num_rows)]
    return graph.node("QGemm", inputs, f"{output}.unscaled", domain=MICROSOFT, transB=1)


def quantize_rows(graph: GraphBuilder, value: str, rows: str) -> tuple[str, str]:
    """Unsigned codes of `value [T, K]` and the rows' scales `[T, 1]`; `rows` names a value of length T."""
    codes = graph.shared(f"{value}.codes", lambda: _quantize_rows(graph, value, rows))
    return codes, f"{value}.row_scale"


def _quantize_rows(graph: GraphBuilder, value: str, rows: str) -> str:
    last_axis = graph.constant("last_axis", np.array([-1], np.int64))
    magnitude = graph.node("Abs", [value], f"{value}.magnitude")
    largest = graph.node("ReduceMax", [magnitude, last_axis], f"{value}.largest", keepdims=0)  # [T]
    ratio = graph.constant("int8_ratio", np.float32(1 / INT8_LIMIT))
    scaled = graph.node("Mul", [largest, ratio], f"{value}.limit")
    smallest = graph.constant("smallest_scale", np.float32(SMALLEST_SCALE))
    scale = graph.node("Max", [scaled, smallest], f"{value}.scale")
    graph.node("Unsqueeze", [scale, last_axis], f"{value}.row_scale")
    return graph.node("QuantizeLinear", [value, scale, _zero_points(graph, rows)], f"{value}.codes", axis=0)


def _zero_points(graph: GraphBuilder, rows: str) -> str:
    """128 for every row, `[T]` uint8: QuantizeLinear wants as many zero points as scales."""

    def build() -> str:
        shape = graph.node("Shape", [rows], f"{rows}.shape")
        value = numpy_helper.from_array(np.array([ACTIVATION_ZERO], np.uint8))
        return graph.node("ConstantOfShape", [shape], f"{rows}.zero_points", value=value)

    return graph.shared(f"{rows}.zero_points", build)


def _folded(plan: MatrixPlan, chunks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Rows of a matrix, or parts of its bias, with the product's scale and all divisors folded in: free at run time."""
    start = 0
    for chunk in chunks:
        folded = chunk if plan.linear.scale == 1.0 else chunk * np.float32(plan.linear.scale)
        if plan.column_factor is not None and chunk.ndim == 2:
            folded = folded * plan.column_factor
        if plan.row_divisor is not None:
            divisor = plan.row_divisor[start : start + len(chunk)]
            folded = folded / (divisor[:, None] if chunk.ndim == 2 else divisor)
        start += len(chunk)
        yield folded


def _int8(
    plan: MatrixPlan, chunks: Iterator[NDArray[np.float32]], scales: list[NDArray[np.float32]]
) -> Iterator[NDArray[np.int8]]:
    for chunk in chunks:
        codes, scale = quantize_int8_rows(_finite(plan, chunk))
        scales.append(scale)
        yield codes


def _in_blocks(
    plan: MatrixPlan,
    chunks: Iterator[NDArray[np.float32]],
    scales: list[NDArray[np.float32]],
    scale_type: type[np.generic],
) -> Iterator[NDArray[np.uint8]]:
    importance = None if plan.recipe is None else plan.recipe.importance
    limit = (
        float(np.finfo(np.float16).max) if scale_type is np.float16 else np.inf
    )  # bfloat16 reaches as far as float32
    for chunk in chunks:
        _finite(plan, chunk)
        if max(chunk.max(), -chunk.min()) > limit:
            raise ExportError(
                f"{plan.linear.weights[0]} holds values beyond {np.dtype(scale_type)}, up to {limit:g}: export in bf16"
            )
        if plan.bits == 8:
            codes, scale = quantize_int8_blocks(chunk, plan.block_size, scale_type=scale_type)
        else:
            codes, scale = quantize_int4_blocks(chunk, plan.block_size, importance=importance, scale_type=scale_type)
        scales.append(scale)
        yield codes


def _finite(plan: MatrixPlan, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(chunk).all():
        raise ExportError(f"{plan.linear.weights[0]} holds values that are not finite: download the checkpoint again")
    return chunk
