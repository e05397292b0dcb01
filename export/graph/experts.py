"""Builds a layer of experts: tokens are sorted by expert, and each expert multiplies the run of tokens that is its own.

The cost follows the tokens that were routed, and a token's result depends on that token alone: it is computed by
products whose rows do not depend on each other, and summed in the order of its own scores. com.microsoft MoE and QMoE
do less: in ONNX Runtime 1.32 their rows change in the last bits with the rows beside them. Knows no layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from ortserve.export.architecture import Experts
from ortserve.export.graph.activate import activate
from ortserve.export.graph.builder import GraphBuilder
from ortserve.export.graph.matrix import multiply, multiply_codes, quantize_rows
from ortserve.export.recipes.layer_plan import LayerPlan, MatrixPlan
from ortserve.export.recipes.precisions import Precision


@dataclass(frozen=True, slots=True)
class _Routes:
    """Where tokens go: one run of rows for each expert, N rows in all, T * active of them for tokens."""

    tokens: str  # [N] int64: the token in each row
    lengths: str  # [experts] int64: rows of each expert
    places: str  # [T * active] int64: the row of each token's experts, highest score first
    shares: str  # [T, 1, active] float: what the experts' results are multiplied by


@dataclass(frozen=True, slots=True)
class _Runs:
    """Rows sorted by expert, one piece for each."""

    pieces: Sequence[str]  # codes where there are scales
    row_scale: str | None  # [N, 1], of all rows


def apply_experts(graph: GraphBuilder, layer: LayerPlan, experts: Experts, value: str, *, rows: str) -> str:
    """The weighted sum of each token's experts: `value [T, hidden]` to the same shape; T may be 0.

    `rows` names a one-dimensional value of length T.
    """
    assert layer.router is not None
    prefix = f"layers.{layer.index}.experts"
    scores = multiply(graph, layer.router, value, rows=rows)
    gates, ups, downs = zip(*(mlp.matrices for mlp in layer.mlps), strict=True)
    # int4 kernels take rows in pairs and a last odd one by other instructions, with other bits (which do depends on the
    # processor): an expert with an odd number of tokens computes one more, which nobody reads
    routes = _route(graph, experts, scores, prefix, pairs="int4" in (gates[0].precision, downs[0].precision))
    runs = _split(graph, gates[0].precision, value, routes, len(gates), rows=rows)
    gate = _multiply(graph, gates, runs, f"{prefix}.gate")
    up = _multiply(graph, ups, runs, f"{prefix}.up")
    gated = activate(graph, experts.experts[0].activation, gate, up, prefix)
    runs = _split(graph, downs[0].precision, gated, routes, len(downs), rows=None)
    down = _multiply(graph, downs, runs, f"{prefix}.down")
    back = graph.node("Gather", [down, routes.places], f"{prefix}.by_token", axis=0)
    by_token = np.array([-1, experts.num_active, downs[0].num_rows], np.int64)
    back = graph.node("Reshape", [back, graph.constant(f"{prefix}.by_token_shape", by_token)], f"{prefix}.results")
    # a product of its own for each token sums in the same order whatever is beside it; reductions do not
    total = graph.node("MatMul", [routes.shares, back], f"{prefix}.total")
    return graph.node("Squeeze", [total, _axis(graph, 1)], f"{prefix}.output")


def _route(graph: GraphBuilder, experts: Experts, scores: str, prefix: str, *, pairs: bool) -> _Routes:
    active = graph.constant(f"{prefix}.num_active", np.array([experts.num_active], np.int64))
    if not experts.normalized:
        scores = graph.node("Softmax", [scores], f"{prefix}.probabilities", axis=-1)
    best, chosen = graph.node_with_outputs("TopK", [scores, active], [f"{prefix}.best", f"{prefix}.chosen"], axis=-1)
    if experts.normalized:
        # over the chosen ones alone: the same as dividing probabilities by their sum
        best = graph.node("Softmax", [best], f"{prefix}.shares", axis=-1)
    shares = graph.node("Unsqueeze", [best, _axis(graph, 1)], f"{prefix}.row_of_shares")
    flat = graph.node("Reshape", [chosen, graph.constant("last_axis", np.array([-1], np.int64))], f"{prefix}.flat")
    lengths = _count(graph, flat, len(experts.experts), f"{prefix}.lengths")
    routed = flat
    if pairs:
        rest = graph.node("Mod", [lengths, graph.constant("a_pair", np.int64(2))], f"{prefix}.unpaired_rows")
        odd = graph.node("NonZero", [rest], f"{prefix}.odd_experts")
        odd = graph.node("Squeeze", [odd, _axis(graph, 0)], f"{prefix}.odd")
        routed = graph.node("Concat", [flat, odd], f"{prefix}.routed", axis=0)
        lengths = _count(graph, routed, len(experts.experts), f"{prefix}.paired_lengths")
    order, places = _sort(graph, routed, prefix)
    tokens = graph.node("Div", [order, active], f"{prefix}.sorted_tokens")
    if pairs:
        size = graph.node("Shape", [flat], f"{prefix}.num_routed")
        is_token = graph.node("Less", [order, size], f"{prefix}.is_token")
        tokens = graph.node("Where", [is_token, tokens, graph.constant("first_token", np.int64(0))], f"{prefix}.tokens")
        places = graph.node("Slice", [places, _axis(graph, 0), size], f"{prefix}.places")
    return _Routes(tokens, lengths, places, shares)


def _count(graph: GraphBuilder, routed: str, num_experts: int, output: str) -> str:
    """How often each expert occurs."""
    size = graph.node("Shape", [routed], f"{output}.size")
    one = numpy_helper.from_array(np.array([1], np.int64))
    ones = graph.node("ConstantOfShape", [size], f"{output}.ones", value=one)
    none = graph.constant(f"no_rows_of_{num_experts}", np.zeros(num_experts, np.int64))
    return graph.node("ScatterElements", [none, routed, ones], output, reduction="add")


def _sort(graph: GraphBuilder, routed: str, prefix: str) -> tuple[str, str]:
    """The places of `routed [N]` in the order of their experts, then of their own; and its inverse."""
    size = graph.node("Shape", [routed], f"{prefix}.num_rows")
    number = graph.node("Squeeze", [size], f"{prefix}.row_count")
    zero, one = (graph.constant(f"number_{value}", np.int64(value)) for value in (0, 1))
    numbers = graph.node("Range", [zero, number, one], f"{prefix}.numbers")
    multiplied = graph.node("Mul", [routed, size], f"{prefix}.expert_keys")
    keys = graph.node("Add", [multiplied, numbers], f"{prefix}.keys")  # no two are equal
    _, order = graph.node_with_outputs("TopK", [keys, size], [f"{prefix}.sorted", f"{prefix}.order"], axis=0, largest=0)
    return order, graph.node("ScatterElements", [numbers, order, numbers], f"{prefix}.inverse")


def _split(
    graph: GraphBuilder, precision: Precision, value: str, routes: _Routes, num_experts: int, *, rows: str | None
) -> _Runs:
    """`value` is `[T, columns]` and `rows` names a value of length T; without `rows` it is `[N, columns]`, sorted."""

    def routed(source: str) -> str:
        if rows is None:
            return source
        return graph.node("Gather", [source, routes.tokens], f"{source}.routed", axis=0)

    row_scale = None
    if precision == "int8":
        value, row_scale = quantize_rows(graph, value, rows or routes.tokens)
        row_scale = routed(row_scale)
    pieces = [f"{value}.run.{index}" for index in range(num_experts)]
    graph.node_with_outputs("Split", [routed(value), routes.lengths], pieces, axis=0)
    return _Runs(pieces, row_scale)


def _multiply(graph: GraphBuilder, matrices: Sequence[MatrixPlan], runs: _Runs, output: str) -> str:
    """Each expert's run of rows times its matrix, one after another: `[N, num_rows]`."""
    pairs = list(zip(matrices, runs.pieces, strict=True))
    if runs.row_scale is None:
        return graph.node(
            "Concat", [multiply(graph, matrix, piece, rows=piece) for matrix, piece in pairs], output, axis=0
        )
    assert not matrices[0].linear.biases
    products = [
        multiply_codes(
            graph,
            piece,
            weight=f"{matrix.name}.weight",
            scale=f"{matrix.name}.scale",
            num_rows=matrix.num_rows,
            output=matrix.name,
        )
        for matrix, piece in pairs
    ]
    unscaled = graph.node("Concat", products, f"{output}.unscaled", axis=0)
    return graph.node("Mul", [unscaled, runs.row_scale], output)


def _axis(graph: GraphBuilder, axis: int) -> str:
    return graph.constant(f"axis_{axis}", np.array([axis], np.int64))
