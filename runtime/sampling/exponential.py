"""Softmax weights of rows of logits by ONNX Runtime, whose exponential is several times faster than NumPy's.

Element by element: a weight's bits do not depend on how many rows or threads there are. Knows no sampling rules.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, ValueInfoProto, helper

from ortserve.runtime.session import Session

Floats = npt.NDArray[np.float32]

_CHUNK_VALUES = 1 << 17  # 512 KiB: a chunk of rows, or one long row, stays in the cache between its passes


class Exponential:
    """`exp((logit - largest) / temperature)` for a few rows at a time; the largest weight of a row is 1."""

    def __init__(self, num_values: int, *, num_threads: int | None = None) -> None:
        """Rows have `num_values` logits; `num_threads` None: all cores of the process."""
        self.max_rows = max(1, _CHUNK_VALUES // num_values)
        self._binding = Session(_graph(num_values), num_threads=num_threads).binding()
        self._weights = np.empty((self.max_rows, num_values), np.float32)

    def weights(self, logits: Floats, largest: Floats, temperatures: npt.NDArray[np.float64]) -> Floats:
        """Of `logits [rows, values]` with the rows' maxima and temperatures `[rows]`, each above 0.

        At most `max_rows` rows; the result `[rows, values]` is valid until the next call.
        """
        count = len(logits)
        assert 0 < count <= self.max_rows
        weights = self._weights[:count]
        self._binding.bind_input("logits", np.ascontiguousarray(logits))
        self._binding.bind_input("largest", np.ascontiguousarray(largest)[:, None])
        self._binding.bind_input("scale", (1.0 / temperatures).astype(np.float32)[:, None])
        self._binding.bind_output("weights", weights)
        self._binding.run()
        return weights


def _graph(num_values: int) -> bytes:
    def value(name: str, width: int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])

    nodes = [
        helper.make_node("Sub", ["logits", "largest"], ["below"]),
        helper.make_node("Mul", ["below", "scale"], ["scaled"]),
        helper.make_node("Exp", ["scaled"], ["weights"]),
    ]
    inputs = [value("logits", num_values), value("largest", 1), value("scale", 1)]
    graph = helper.make_graph(nodes, "exponential", inputs, [value("weights", num_values)])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    return bytes(model.SerializeToString())
