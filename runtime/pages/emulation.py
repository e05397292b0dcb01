"""Rewrites a graph of layout "pages" into CPU operators in float32. Knows the PagedAttention schema, no model.

For proofs and tests where no GPU is: the same function, computed token by token so that a token's result does not
depend on the others in its run. Far too slow to serve with: every token gathers all its pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CODES = (TensorProto.INT8, TensorProto.FLOAT8E4M3FN)  # of a quantized cache: here it holds what they stand for


def emulate(path: Path) -> onnx.ModelProto:
    """The rewritten model, all weights inside."""
    model = onnx.load(str(path))
    codes = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    _widen(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "PagedAttention":
            nodes += _Expansion(node, _shapes(model), codes[node.input[3]]).nodes()
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _widen(model: onnx.ModelProto) -> None:
    """16-bit floats become float32 everywhere: the CPU has few kernels for them."""
    for tensor in model.graph.initializer:
        if tensor.data_type in _NARROW:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in (*_NARROW, *_CODES):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _NARROW:
                attribute.i = TensorProto.FLOAT


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Page size and head size of every KV input."""
    found = {}
    for value in model.graph.input:
        if value.name.startswith("past."):
            _, page, _, head = value.type.tensor_type.shape.dim
            found[value.name] = (page.dim_value, head.dim_value)
    return found


class _Expansion:
    """The nodes that stand for one PagedAttention node."""

    def __init__(self, node: onnx.NodeProto, shapes: dict[str, tuple[int, int]], codes: int) -> None:
        self._node = node
        self._codes = codes  # the type of the stored keys and values
        self._options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self._inputs = [*node.input, *[""] * (17 - len(node.input))]
        self._page_size, self._head = shapes[node.input[3]]
        self._nodes: list[onnx.NodeProto] = []

    def nodes(self) -> list[onnx.NodeProto]:
        """In order of execution; the last one has the output name of the original."""
        kv_heads, head = self._options["kv_num_heads"], self._head
        group = self._options["num_heads"] // kv_heads
        row, position = self._places()
        query, key, value = self._projections(position)
        stored = [
            self._store(self._inputs[place], self._through_codes(part, self._inputs[scale]), self._node.output[output])
            for place, part, scale, output in ((3, key, 14, 1), (4, value, 15, 2))
        ]
        keys, values = (self._gather(cache, row) for cache in stored)  # [T, kv_heads, C, head]
        grouped = self._reshape(query, [-1, kv_heads, group, head])
        scores = self._add("MatMul", grouped, self._add("Transpose", keys, perm=[0, 1, 3, 2]))
        scores = self._add("Mul", scores, self._float(self._options.get("scale") or head**-0.5))
        if self._options.get("softcap"):
            cap = self._float(self._options["softcap"])
            scores = self._add("Mul", self._add("Tanh", self._add("Div", scores, cap)), cap)
        weights = self._add("Softmax", self._mask(scores, keys, position), axis=-1)
        attended = self._add("MatMul", weights, values)
        flat = self._ints([-1, group * kv_heads * head])
        self._nodes.append(helper.make_node("Reshape", [attended, flat], [self._node.output[0]]))
        return self._nodes

    def _places(self) -> tuple[str, str]:
        """Row and position of each token, `[T]` int64."""
        cumulative, past = (self._cast(name, TensorProto.INT64) for name in (self._inputs[5], self._inputs[6]))
        count = self._add("Shape", self._inputs[0], start=0, end=1)
        zero, one = self._int(0), self._int(1)
        token = self._add("Range", zero, self._add("Squeeze", count), one)
        ends = self._add("Slice", cumulative, self._ints([1]), self._ints([1 << 60]))
        begun = self._add("GreaterOrEqual", self._add("Unsqueeze", token, self._ints([1])), ends)  # [T, B]
        row = self._add("ReduceSum", self._cast(begun, TensorProto.INT64), self._ints([1]), keepdims=0)
        first = self._add("Gather", cumulative, row)
        return row, self._add("Add", self._add("Sub", token, first), self._add("Gather", past, row))

    def _projections(self, position: str) -> tuple[str, str, str]:
        """Query, key and value `[T, heads, head]`, normed and rotated as the node's options say."""
        heads, kv_heads, head = self._options["num_heads"], self._options["kv_num_heads"], self._head
        parts = self._inputs[:3]
        if not parts[1]:
            sizes = self._ints([heads * head, kv_heads * head, kv_heads * head])
            parts = self._add_many("Split", [parts[0], sizes], 3, axis=1)
        query, key, value = (
            self._reshape(part, [-1, num, head]) for part, num in zip(parts, (heads, kv_heads, kv_heads), strict=True)
        )
        if self._inputs[12]:
            epsilon = self._options.get("qk_norm_epsilon", 1e-6)
            query, key = (
                self._add("SimplifiedLayerNormalization", part, weight, axis=-1, epsilon=epsilon)
                for part, weight in ((query, self._inputs[12]), (key, self._inputs[13]))
            )
        if self._options.get("do_rotary"):
            query, key = (self._rotate(part, position) for part in (query, key))
        return query, key, value

    def _rotate(self, part: str, position: str) -> str:
        cosine, sine = (
            self._add("Unsqueeze", self._add("Gather", table, position), self._ints([1]))
            for table in self._inputs[8:10]
        )
        first, second = self._add_many("Split", [part, self._ints([self._head // 2] * 2)], 2, axis=2)
        turned = [
            self._add("Sub", self._add("Mul", first, cosine), self._add("Mul", second, sine)),
            self._add("Add", self._add("Mul", second, cosine), self._add("Mul", first, sine)),
        ]
        return self._add("Concat", *turned, axis=2)

    def _through_codes(self, part: str, scale: str) -> str:
        """What the codes of `part` stand for; `part` itself where the cache holds floats."""
        if self._codes not in _CODES:
            return part
        shape = [-1, self._options["kv_num_heads"], self._head]
        scale = self._reshape(scale, shape)  # [1, kv_heads, head]
        code = self._add("Div", part, scale)
        if self._codes == TensorProto.INT8:
            code = self._add("Clip", self._add("Round", code), self._float(-128), self._float(127))
        else:
            code = self._cast(self._cast(code, TensorProto.FLOAT8E4M3FN), TensorProto.FLOAT)  # beyond its range: cut
        return self._add("Mul", code, scale)

    def _store(self, cache: str, part: str, output: str) -> str:
        """The cache with the tokens whose slot is not negative."""
        slots = self._cast(self._inputs[10], TensorProto.INT64)
        wanted = self._add("GreaterOrEqual", slots, self._int(0))
        kept = self._add("Compress", slots, wanted, axis=0)
        size = self._int(self._page_size)
        pair = [self._add("Unsqueeze", self._add(kind, kept, size), self._ints([1])) for kind in ("Div", "Mod")]
        places = self._add("Concat", *pair, axis=1)  # [n, page and offset]
        values = self._add("Compress", part, wanted, axis=0)
        self._nodes.append(helper.make_node("ScatterND", [cache, places, values], [output]))
        return output

    def _gather(self, cache: str, row: str) -> str:
        """All pages of each token's row, `[T, kv_heads, C, head]`."""
        table = self._add("Max", self._cast(self._inputs[7], TensorProto.INT64), self._int(0))
        pages = self._add("Gather", cache, self._add("Gather", table, row))  # [T, M, P, kv_heads, head]
        flat = self._reshape(pages, [0, -1, self._options["kv_num_heads"], self._head])
        return self._add("Transpose", flat, perm=[0, 2, 1, 3])

    def _mask(self, scores: str, keys: str, position: str) -> str:
        """Scores of later tokens, and of those before the window, become -inf."""
        count = self._add("Squeeze", self._add("Shape", keys, start=2, end=3))
        place = self._add("Range", self._int(0), count, self._int(1))
        last = self._add("Unsqueeze", position, self._ints([1]))
        seen = self._add("LessOrEqual", place, last)  # [T, C]
        window = self._options.get("local_window_size", -1)
        if window > 0:
            oldest = self._add("Sub", last, self._int(window))
            seen = self._add("And", seen, self._add("Greater", place, oldest))
        return self._add("Where", self._add("Unsqueeze", seen, self._ints([1, 2])), scores, self._float(-np.inf))

    def _add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self._add_many(kind, inputs, 1, **attributes)[0]

    def _add_many(self, kind: str, inputs: Iterable[str], num_outputs: int, **attributes: Any) -> list[str]:
        prefix = f"{self._node.output[0]}.emulated.{len(self._nodes)}"
        names = [f"{prefix}.{place}" for place in range(num_outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def _reshape(self, value: str, shape: list[int]) -> str:
        return self._add("Reshape", value, self._ints(shape))

    def _cast(self, value: str, kind: int) -> str:
        return self._add("Cast", value, to=kind)

    def _ints(self, values: list[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _int(self, value: int) -> str:
        return self._constant(np.array(value, np.int64))

    def _float(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _constant(self, value: np.ndarray[Any, Any]) -> str:
        return self._add("Constant", value=numpy_helper.from_array(value))
