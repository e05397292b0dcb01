"""Takes over a graph that optimum made, its matrices in the wanted precision, and what comes after it. Knows no family.

int8: products of hidden states `[B, S, columns]` with a stored matrix, and the lookup of tokens, by the same recipe as
in decoders (export/graph/matrix.py): weights with one scale for each output, states with one for each token. Products
of two computed values (attention) and of pooled vectors (a classifier) stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from ortserve.export.errors import ExportError
from ortserve.export.graph.builder import GraphBuilder
from ortserve.export.graph.matrix import multiply_int8
from ortserve.export.recipes.quantize import quantize_int8_rows

LEAST_OPSET = 18  # axes of reductions as inputs
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LEAST_COLUMNS = 8  # smaller products gain nothing


class SourceGraph:
    """A graph as optimum wrote it, and what is to be known of it."""

    def __init__(self, path: Path) -> None:
        """Raises `ExportError` when the graph is not an encoder's."""
        self._model = onnx.load(str(path))
        self.opset = next(entry.version for entry in self._model.opset_import if entry.domain in ("", "ai.onnx"))
        self.domains = [entry.domain for entry in self._model.opset_import if entry.domain not in ("", "ai.onnx")]
        self.inputs = tuple(value.name for value in self._model.graph.input)
        if self.opset < LEAST_OPSET or self.domains:
            raise ExportError(f"optimum gave a graph of opset {self.opset} {self.domains}, {LEAST_OPSET} is needed")
        if not set(self.inputs) <= set(INPUTS) or not {"input_ids", "attention_mask"} <= set(self.inputs):
            raise ExportError(f"optimum gave a graph that takes {', '.join(self.inputs)}: it is not a text encoder's")
        self.output = str(self._model.graph.output[0].name)
        self.initializers = {entry.name: entry for entry in self._model.graph.initializer}
        self.nodes = tuple(self._model.graph.node)
        self._ranks = _ranks(self._model)

    @property
    def num_parameters(self) -> int:
        """Elements of all stored float tensors."""
        floats = [entry for entry in self.initializers.values() if entry.data_type == onnx.TensorProto.FLOAT]
        return sum(int(np.prod(entry.dims)) for entry in floats)

    @property
    def width(self) -> int:
        """Numbers in the last axis of the output."""
        return int(self._model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value)

    def rank(self, value: str) -> int | None:
        """Axes of a value, where they can be told."""
        return self._ranks.get(value)

    def matrix(self, name: str) -> NDArray[np.float32] | None:
        """A stored float32 matrix; None for anything else."""
        entry = self.initializers.get(name)
        if entry is None or len(entry.dims) != 2 or entry.data_type != onnx.TensorProto.FLOAT:
            return None
        return np.asarray(numpy_helper.to_array(entry), np.float32)


def take_over(graph: GraphBuilder, source: SourceGraph, precision: str) -> str:
    """Emit the whole source into `graph`; returns the name of its output."""
    for name in source.inputs:
        graph.input(name, np.int64, ["batch", "length"])
    used_as_float = set(source.initializers)
    if precision == "int8":
        products = {place: _product(source, node) for place, node in enumerate(source.nodes)}
        lookups = {place: _lookup(source, node) for place, node in enumerate(source.nodes)}
        quantized = {name for found in (products, lookups) for name in found.values() if name}
        elsewhere = {
            name
            for place, node in enumerate(source.nodes)
            if not (products[place] or lookups[place])
            for name in node.input
        }
        used_as_float = {name for name in source.initializers if name not in quantized or name in elsewhere}
    for name in source.initializers:
        if name in used_as_float:
            _store(graph, source.initializers[name])
    tokens = graph.node("Reshape", ["input_ids", graph.constant("flat.shape", np.array([-1]))], "tokens.flat")
    for node in source.nodes:
        if precision == "int8" and (weight := _product(source, node)):
            _multiply(graph, source, node, weight, tokens)
        elif precision == "int8" and (weight := _lookup(source, node)):
            _look_up(graph, source, node, weight)
        else:
            graph.adopt(node)
    return source.output


def _product(source: SourceGraph, node: onnx.NodeProto) -> str | None:
    """The stored matrix that a product of hidden states multiplies by."""
    if node.op_type != "MatMul" or source.rank(node.input[0]) != 3:
        return None
    matrix = source.initializers.get(node.input[1])
    if matrix is None or len(matrix.dims) != 2 or min(matrix.dims) < LEAST_COLUMNS:
        return None
    return str(node.input[1])


def _lookup(source: SourceGraph, node: onnx.NodeProto) -> str | None:
    """The stored table in which the tokens themselves are looked up."""
    if node.op_type != "Gather" or list(node.input[1:]) != ["input_ids"]:
        return None
    return str(node.input[0]) if source.matrix(node.input[0]) is not None else None


def _store(graph: GraphBuilder, entry: onnx.TensorProto) -> None:
    value = numpy_helper.to_array(entry)
    if value.size > 1:
        graph.weight(entry.name, value.dtype.type, value.shape, [value.reshape(-1)])
    else:
        graph.constant(entry.name, value)


def _codes(graph: GraphBuilder, source: SourceGraph, name: str, *, transposed: bool) -> int:
    """Store a matrix as int8 rows and their scales, once; the number of rows."""
    matrix = source.matrix(name)
    assert matrix is not None
    rows = np.ascontiguousarray(matrix.T) if transposed else matrix
    if not np.isfinite(rows).all():
        raise ExportError(f"{name} holds values that are not finite: download the checkpoint again")

    def store() -> str:
        codes, scales = quantize_int8_rows(rows)
        graph.weight(f"{name}.codes", np.int8, codes.shape, [codes])
        graph.weight(f"{name}.scales", np.float32, scales.shape, [scales])
        return name

    graph.shared(f"{name}.codes", store)
    return int(rows.shape[0])


def _multiply(graph: GraphBuilder, source: SourceGraph, node: onnx.NodeProto, weight: str, tokens: str) -> None:
    value, output = node.input[0], node.output[0]
    matrix = source.initializers[weight]
    num_rows = _codes(graph, source, weight, transposed=True)
    shape = graph.constant(f"flat.{matrix.dims[0]}", np.array([-1, matrix.dims[0]]))
    flat = graph.shared(f"{value}.flat", lambda: graph.node("Reshape", [value, shape], f"{value}.flat"))
    multiply_int8(
        graph,
        flat,
        weight=f"{weight}.codes",
        scale=f"{weight}.scales",
        num_rows=num_rows,
        output=f"{output}.flat",
        rows=tokens,
    )
    graph.node("Reshape", [f"{output}.flat", _shape(graph, num_rows)], output)


def _shape(graph: GraphBuilder, width: int) -> str:
    """`[B, S, width]` as a value."""

    def build() -> str:
        batch = graph.shared("tokens.shape", lambda: graph.node("Shape", ["input_ids"], "tokens.shape"))
        last = graph.constant(f"width.{width}", np.array([width]))
        return graph.node("Concat", [batch, last], f"tokens.shape.{width}", axis=0)

    return graph.shared(f"tokens.shape.{width}", build)


def _look_up(graph: GraphBuilder, source: SourceGraph, node: onnx.NodeProto, weight: str) -> None:
    output = node.output[0]
    _codes(graph, source, weight, transposed=False)
    codes = graph.node("Gather", [f"{weight}.codes", "input_ids"], f"{output}.codes", axis=0)
    scales = graph.node("Gather", [f"{weight}.scales", "input_ids"], f"{output}.scales", axis=0)  # [B, S]
    column = graph.node("Unsqueeze", [scales, graph.constant("lookup.last", np.array([-1]))], f"{output}.column")
    graph.node("Mul", [graph.node("Cast", [codes], f"{output}.float", to=1), column], output)


def _ranks(model: onnx.ModelProto) -> Mapping[str, int]:
    inferred = shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
