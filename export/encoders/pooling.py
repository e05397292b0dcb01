"""Nodes from hidden states to one vector for each text: pooling, dense layers, normalization. Knows no encoder.

Formulas: sentence-transformers, sentence_transformer/modules/pooling.py and base/modules/dense.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ortserve.export.encoders.bridge import DenseModule
from ortserve.export.errors import ExportError
from ortserve.export.graph.builder import GraphBuilder

SMALLEST_COUNT = 1e-9
SMALLEST_NORM = 1e-12
LOWEST = float(np.finfo(np.float32).min)
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "Sigmoid", "GELU")


def pool(graph: GraphBuilder, modes: Sequence[str], hidden: str, mask: str) -> str:
    """`hidden [B, S, H]` and `mask [B, S]` int64 to `[B, H * modes]`, the modes' results joined in order."""
    to_float = graph.node("Cast", [mask], "pool.mask", to=1)
    column = graph.node("Unsqueeze", [to_float, graph.constant("pool.last", np.array([-1]))], "pool.column")
    known: Mapping[str, Callable[[GraphBuilder, str, str], str]] = {
        "cls": _first,
        "max": _largest,
        "mean": _mean,
        "mean_sqrt_len_tokens": _mean_by_root,
        "weightedmean": _weighted_mean,
        "lasttoken": lambda graph, hidden, _: _last(graph, hidden, mask),
    }
    pooled = [known[mode](graph, hidden, column) for mode in modes]
    return pooled[0] if len(pooled) == 1 else graph.node("Concat", pooled, "pool.joined", axis=1)


def add_dense(graph: GraphBuilder, value: str, module: DenseModule, name: str) -> str:
    """`value [B, inputs]` to `[B, outputs]`. Raises `ExportError` for an activation that is not known."""
    if module.activation not in ACTIVATIONS:
        raise ExportError(f"a Dense module ends with {module.activation}; known are {', '.join(ACTIVATIONS)}")
    graph.weight(f"{name}.weight", np.float32, module.weight.shape, [module.weight])
    inputs = [value, f"{name}.weight"]
    if module.bias is not None:
        inputs.append(graph.weight(f"{name}.bias", np.float32, module.bias.shape, [module.bias]))
    product = graph.node("Gemm", inputs, name, transB=1)
    return activate(graph, product, module.activation, f"{name}.active")


def activate(graph: GraphBuilder, value: str, activation: str, name: str) -> str:
    """Element-wise, by torch's class name."""
    if activation == "Identity":
        return value
    if activation == "GELU":
        scaled = graph.node("Div", [value, graph.constant("gelu.root", np.float32(np.sqrt(2)))], f"{name}.scaled")
        error = graph.node("Erf", [scaled], f"{name}.erf")
        one = graph.node("Add", [error, graph.constant("gelu.one", np.float32(1))], f"{name}.one")
        half = graph.node("Mul", [value, graph.constant("gelu.half", np.float32(0.5))], f"{name}.half")
        return graph.node("Mul", [half, one], name)
    return graph.node("Relu" if activation == "ReLU" else activation, [value], name)


def normalize(graph: GraphBuilder, value: str) -> str:
    """Rows of length 1."""
    axis = graph.constant("normalize.axis", np.array([-1]))
    length = graph.node("ReduceL2", [value, axis], "normalize.length", keepdims=1)
    bounded = graph.node("Max", [length, graph.constant("normalize.least", np.float32(SMALLEST_NORM))], "normalize.by")
    return graph.node("Div", [value, bounded], "normalize.unit")


def _first(graph: GraphBuilder, hidden: str, _: str) -> str:
    return graph.node("Gather", [hidden, graph.constant("pool.zero", np.int64(0))], "pool.first", axis=1)


def _last(graph: GraphBuilder, hidden: str, mask: str) -> str:
    """The hidden state of each text's last token, by its index: padding is at the end."""
    axis = graph.constant("pool.last", np.array([-1]))
    count = graph.node("ReduceSum", [mask, axis], "pool.tokens", keepdims=1)  # [B, 1]
    place = graph.node("Sub", [count, graph.constant("pool.one", np.int64(1))], "pool.place")
    return graph.node("GatherND", [hidden, place], "pool.end", batch_dims=1)


def _largest(graph: GraphBuilder, hidden: str, column: str) -> str:
    kept = graph.node("Greater", [column, graph.constant("pool.none", np.float32(0))], "pool.kept")
    masked = graph.node("Where", [kept, hidden, graph.constant("pool.lowest", np.float32(LOWEST))], "pool.masked")
    return graph.node("ReduceMax", [masked, graph.constant("pool.axis", np.array([1]))], "pool.largest", keepdims=0)


def _sum(graph: GraphBuilder, value: str, name: str) -> str:
    """Over the tokens, `[B, S, ...]` to `[B, ...]`."""
    return graph.node("ReduceSum", [value, graph.constant("pool.axis", np.array([1]))], name, keepdims=0)


def _mean_parts(graph: GraphBuilder, hidden: str, column: str) -> tuple[str, str]:
    """The sum of the tokens' states and their number."""

    def total() -> str:
        return _sum(graph, graph.node("Mul", [hidden, column], "pool.states"), "pool.sum")

    def count() -> str:
        least = graph.constant("pool.least", np.float32(SMALLEST_COUNT))
        return graph.node("Max", [_sum(graph, column, "pool.number"), least], "pool.count")

    return graph.shared("pool.sum", total), graph.shared("pool.count", count)


def _mean(graph: GraphBuilder, hidden: str, column: str) -> str:
    return graph.node("Div", [*_mean_parts(graph, hidden, column)], "pool.mean")


def _mean_by_root(graph: GraphBuilder, hidden: str, column: str) -> str:
    total, count = _mean_parts(graph, hidden, column)
    return graph.node("Div", [total, graph.node("Sqrt", [count], "pool.root")], "pool.mean_by_root")


def _weighted_mean(graph: GraphBuilder, hidden: str, column: str) -> str:
    """The n-th token counts n times."""
    axis = graph.constant("pool.axis_number", np.int64(1))
    weights = graph.node("CumSum", [column, axis], "pool.positions")  # 1, 2, 3 ... over the tokens
    kept = graph.node("Mul", [weights, column], "pool.weights")
    total = _sum(graph, graph.node("Mul", [hidden, kept], "pool.weighted"), "pool.weighted_sum")
    least = graph.constant("pool.least", np.float32(SMALLEST_COUNT))
    count = graph.node("Max", [_sum(graph, kept, "pool.weight_sum"), least], "pool.weight_count")
    return graph.node("Div", [total, count], "pool.weighted_mean")
