"""Reads of a foreign graph what running it takes: inputs, outputs, its cache, its kernels. Computes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import onnx
from onnx import TensorProto

from ortserve.export.errors import ExportError
from ortserve.export.imported.layout import LAYER, Names
from ortserve.runtime.padded_graph import Attention, PaddedGraph

FLOATS: Mapping[int, Literal["float32", "float16"]] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
INTEGERS: Mapping[int, Literal["int32", "int64"]] = {TensorProto.INT32: "int32", TensorProto.INT64: "int64"}
INT8_KERNELS = frozenset({"MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "QLinearMatMul"})
# Inputs of graphs that are served in another way, or not at all, and what is to be said of them.
KNOWN_OTHERS: Mapping[str, str] = {
    "use_cache_branch": "it is two graphs in one, as optimum once merged them: export it again without merging",
    "block_table": "its keys lie in pages of a CUDA kernel: export the checkpoint with ortserve export --device cuda",
    "inputs_embeds": "it is the middle part of a model that sees or hears, and models that take only text are served",
    "encoder_hidden_states": "it reads what an encoder computed, and models of one decoder are served",
    "pixel_values": "it takes pictures, and models that take only text are served",
}


@dataclass(frozen=True, slots=True)
class Outside:
    """What a manifest says of a foreign graph."""

    padded: PaddedGraph
    num_layers: int
    num_kv_heads: int | None  # None: the graph does not say
    head_dim: int | None
    precision: str
    num_parameters: int
    weight_bytes: int
    data_files: tuple[str, ...]  # of its weights, beside the graph


def read_outside(path: Path, names: Names) -> Outside:
    """Raises `ExportError` for a graph that cannot be read or run row by row, naming what it is about it."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}): check the folder") from None
    except Exception:  # protobuf's own DecodeError
        raise ExportError(f"{path} is no ONNX graph: download it again") from None
    inputs = {value.name: value.type.tensor_type for value in model.graph.input}
    for tensor in model.graph.initializer:
        inputs.pop(tensor.name, None)  # older graphs list their weights
    outputs = {value.name: value.type.tensor_type for value in model.graph.output}
    nodes = list(_nodes(model.graph))
    has_groups = any(node.op_type == "GroupQueryAttention" for node in nodes)
    num_layers = _num_layers(path, inputs, outputs, names)
    attention: Attention = "grouped" if has_groups else "concatenated"
    padded = _padded(path, inputs, outputs, names, attention=attention, num_layers=num_layers)
    _check_bounds(path, inputs, padded)
    dims = inputs[names.past_key.format(layer=0)].shape.dim
    return Outside(
        padded=padded,
        num_layers=num_layers,
        num_kv_heads=dims[1].dim_value or None,
        head_dim=dims[3].dim_value or None,
        precision=_precision(model, nodes),
        num_parameters=_num_parameters(model, nodes),
        weight_bytes=sum(_num_bytes(tensor) for tensor in model.graph.initializer),
        data_files=tuple(sorted({file for tensor in model.graph.initializer if (file := _data_file(tensor))})),
    )


def check_data_files(path: Path, outside: Outside) -> None:
    """Raise `ExportError` unless every file of weights lies beside the graph at `path`."""
    for name in outside.data_files:
        if Path(name).name != name or not (path.parent / name).is_file():
            raise ExportError(f"{path} has weights in {name}, which is not beside it: download it too")


def _num_layers(path: Path, inputs: Mapping[str, object], outputs: Mapping[str, object], names: Names) -> int:
    pattern = re.compile(re.escape(names.past_key).replace(re.escape(LAYER), r"(\d+)"))
    found = {int(match[1]) for name in inputs if (match := pattern.fullmatch(name))}
    if not found or found != set(range(len(found))):
        raise ExportError(
            f"{path} takes no {names.past_key.format(layer=0)} and so on: a graph without past keys and values"
            " computes every token anew; export it with them (text-generation-with-past)"
        )
    for layer in range(len(found)):
        for name, where in (
            (names.past_value, inputs),
            (names.present_key, outputs),
            (names.present_value, outputs),
        ):
            if name.format(layer=layer) not in where:
                raise ExportError(f"{path} has no {name.format(layer=layer)}: its keys and values do not come in pairs")
    return len(found)


def _padded(
    path: Path,
    inputs: Mapping[str, TensorProto],
    outputs: Mapping[str, TensorProto],
    names: Names,
    *,
    attention: Attention,
    num_layers: int,
) -> PaddedGraph:
    if names.input_ids not in inputs or names.logits not in outputs:
        _refuse_others(path, set(inputs), set())
        raise ExportError(f"{path} takes no {names.input_ids} or gives no {names.logits}: it is no text decoder")
    optional = {
        "attention_mask": names.attention_mask,
        "position_ids": names.position_ids,
        "last_places": names.last_places,
        "total_length": names.total_length,
    }
    layers = {name.format(layer=layer) for layer in range(num_layers) for name in (names.past_key, names.past_value)}
    _refuse_others(path, set(inputs), {names.input_ids, *optional.values(), *layers})
    present = {key: name if name in inputs else None for key, name in optional.items()}
    kv_types = {inputs[name].elem_type for name in layers}
    if len(kv_types) != 1 or not kv_types <= set(FLOATS):
        stored = ", ".join(sorted(TensorProto.DataType.Name(kind) for kind in kv_types))
        raise ExportError(f"{path} stores keys and values as {stored}: FLOAT and FLOAT16 are served")
    whole = {
        inputs[name].elem_type for name in (names.input_ids, names.attention_mask, names.position_ids) if name in inputs
    }
    logits = outputs[names.logits].elem_type
    if len(whole) != 1 or not whole <= set(INTEGERS) or logits not in FLOATS:
        raise ExportError(f"{path} has ids, masks or logits of types that are not served")
    total = inputs.get(names.total_length)
    return PaddedGraph(
        attention=attention,
        input_ids=names.input_ids,
        logits=names.logits,
        past_key=names.past_key,
        past_value=names.past_value,
        present_key=names.present_key,
        present_value=names.present_value,
        total_length_rank=1 if total is not None and len(total.shape.dim) == 1 else 0,
        integers=INTEGERS[whole.pop()],
        floats=FLOATS[kv_types.pop()],
        logit_floats=FLOATS[logits],
        **present,
    )


def _refuse_others(path: Path, found: set[str], known: set[str]) -> None:
    for name, reason in KNOWN_OTHERS.items():
        if name in found:
            raise ExportError(f"{path} takes {name}: {reason}")
    others = sorted(found - known)
    if known and others:
        raise ExportError(f"{path} takes {others[0]}, which is not known: only tokens, masks, positions and keys are")


def _check_bounds(path: Path, inputs: Mapping[str, TensorProto], padded: PaddedGraph) -> None:
    """The attention must be told where rows end, and no axis that grows may have a fixed size."""
    has_lengths = padded.last_places is not None and padded.total_length is not None
    if padded.attention == "grouped" and padded.attention_mask is None and not has_lengths:
        raise ExportError(f"{path} takes no attention_mask: nothing tells its attention where rows end")
    past = inputs[padded.past_key.format(layer=0)].shape.dim
    if len(past) != 4:
        raise ExportError(f"{path} stores keys in {len(past)} axes: [rows, heads, tokens, channels] are served")
    ids = inputs[padded.input_ids].shape.dim
    if len(ids) != 2 or any(axis.dim_value for axis in (*ids, past[0], past[2])):
        raise ExportError(
            f"{path} has fixed numbers of rows or tokens, and here they change from run to run: export it with dynamic"
            " shapes"
        )


def _precision(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> str:
    """By its narrowest kernels: they decide how much a proof may find."""
    bits = {_attribute(node, "bits", 4) for node in nodes if node.op_type == "MatMulNBits"}
    if bits and min(bits) <= 4:
        return "int4"
    if bits or any(node.op_type in INT8_KERNELS for node in nodes):
        return "int8"
    largest = max(model.graph.initializer, key=_num_values, default=None)
    kind = TensorProto.FLOAT if largest is None else largest.data_type
    return {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}.get(kind, "fp32")


def _num_parameters(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> int:
    """Values of float and 8-bit tensors; a matrix of fewer bits counts by its rows and columns."""
    packed = {node.input[1]: _attribute(node, "K", 0) * _attribute(node, "N", 0) for node in nodes
              if node.op_type == "MatMulNBits"}  # fmt: skip
    ignored = {name for node in nodes if node.op_type == "MatMulNBits" for name in node.input[2:]}
    return sum(
        packed.get(tensor.name, _num_values(tensor))
        for tensor in model.graph.initializer
        if tensor.name not in ignored and tensor.data_type not in (TensorProto.INT32, TensorProto.INT64)
    )


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _num_values(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _num_bytes(tensor: TensorProto) -> int:
    length = next((entry.value for entry in tensor.external_data if entry.key == "length"), None)
    if length is not None:
        return int(length)
    return _num_values(tensor) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _data_file(tensor: TensorProto) -> str:
    return next((cast(str, entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Of the graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
