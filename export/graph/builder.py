"""Collects nodes and initializers of one ONNX graph. Knows ONNX, no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ortserve.export.graph.data_file import DataFile
from ortserve.runtime.manifest import FloatType

IR_VERSION = 10
OPSET = 21  # QuantizeLinear with typed scales; below what every supported ONNX Runtime accepts
MICROSOFT = "com.microsoft"
_FLOATS: Mapping[FloatType, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


class GraphBuilder:
    """Nodes in order of creation. Values are named after the node that makes them.

    `floats` is the type of activations, and of all weights that are not quantized.
    """

    def __init__(self, data: DataFile, *, floats: FloatType = "float32") -> None:
        self.floats: type[np.generic] = _FLOATS[floats]
        self._data = data
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._shared: dict[str, str] = {}

    def input(self, name: str, dtype: type[np.generic], shape: list[str | int]) -> str:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, _tensor_type(dtype), shape))
        return name

    def output(self, name: str, dtype: type[np.generic], shape: list[str | int]) -> None:
        """Declare a value as graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, _tensor_type(dtype), shape))

    def node(self, kind: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        return self.node_with_outputs(kind, inputs, [output], domain=domain, **attributes)[0]

    def node_with_outputs(
        self, kind: str, inputs: list[str], outputs: list[str], *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node; an empty name skips an optional input or output."""
        name = next(output for output in outputs if output)
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs

    def adopt(self, node: onnx.NodeProto) -> None:
        """Add a node of another graph as it is."""
        self._nodes.append(node)

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """A small value stored in the graph itself; asking again for the same name returns the first."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def weight(self, name: str, dtype: type[np.generic], shape: tuple[int, ...], chunks: Iterable[NDArray[Any]]) -> str:
        """Stream a tensor into the external data file."""
        assert name not in self._initializers, name
        self._initializers[name] = self._data.append(name, np.dtype(dtype), shape, chunks)
        return name

    def unit(self, name: str, store: Callable[[], None]) -> None:
        """Weights that belong together: what `store` streams, taken from an earlier run where it was interrupted."""

        def collect() -> list[onnx.TensorProto]:
            before = set(self._initializers)
            store()
            return [tensor for key, tensor in self._initializers.items() if key not in before]

        for tensor in self._data.unit(name, collect):
            self._initializers[tensor.name] = tensor

    def shared(self, name: str, build: Callable[[], str]) -> str:
        """The value built on first request for `name`; later requests reuse it."""
        if name not in self._shared:
            self._shared[name] = build()
        return self._shared[name]

    def model(self, *, name: str, producer_version: str, opset: int = OPSET) -> onnx.ModelProto:
        """The finished graph. `opset` is that of adopted nodes, where there are any."""
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, initializer=list(self._initializers.values())
        )
        return helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)],
            producer_name="ortserve",
            producer_version=producer_version,
        )


def _tensor_type(dtype: type[np.generic]) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
