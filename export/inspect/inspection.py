"""What an exported folder holds, for people and for programs. Reads only manifest and graph, never weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from ortserve.export.inspect.structure import PartFacts, chart_errors, draw_parts, read_parts
from ortserve.export.proof.integrity import read_graph
from ortserve.export.proof.report_text import describe_report
from ortserve.runtime.errors import ReportError
from ortserve.runtime.manifest import Manifest, TakenFacts, read_manifest
from ortserve.runtime.report import Report, find_doubts, read_report


@dataclass(frozen=True, slots=True)
class GraphValue:
    """An input or output of the graph."""

    name: str
    dtype: str  # as ONNX names it: FLOAT, INT64, ...
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """The outside of a graph and what it is made of."""

    ir_version: int
    opsets: Mapping[str, int]
    num_nodes: int
    operators: Mapping[str, int]  # how often each occurs
    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Everything `ortserve inspect` knows."""

    manifest: Manifest
    graph: GraphFacts
    file_bytes: Mapping[str, int]
    parts: tuple[PartFacts, ...]
    report: Report | None  # None: there is none that can be read
    doubts: tuple[str, ...] = ()  # why it is not served, as of now


def inspect_model(folder: Path) -> ModelFacts:
    """Raises `ManifestError` without a readable manifest, `CheckFailedError` without a readable graph."""
    manifest = read_manifest(folder)
    model = read_graph(folder, manifest)
    operators = Counter(node.op_type for node in model.graph.node)
    graph = GraphFacts(
        ir_version=model.ir_version,
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        num_nodes=len(model.graph.node),
        operators=dict(operators.most_common()),
        inputs=tuple(_value(info) for info in model.graph.input),
        outputs=tuple(_value(info) for info in model.graph.output),
    )
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    report = find_report(folder)
    layers = report.parity.layers if report is not None and report.parity is not None else ()
    doubts = tuple(find_doubts(folder, digest=manifest.digest))
    return ModelFacts(manifest, graph, sizes, read_parts(model.graph, manifest.matrices, layers), report, doubts)


def find_report(folder: Path) -> Report | None:
    """None where there is none that can be read."""
    try:
        return read_report(folder)
    except ReportError:
        return None


def describe_model(facts: ModelFacts) -> str:
    """Aligned lines for a terminal."""
    manifest, graph = facts.manifest, facts.graph
    kv = manifest.kv
    generation = {
        name: value
        for name in ("temperature", "top_p", "top_k", "repetition_penalty")
        if (value := getattr(manifest.generation, name)) is not None
    }
    rows = [
        ("name", f"{manifest.name} ({manifest.family}, {manifest.precision})"),
        ("source", manifest.source),
        ("exporter", manifest.exporter),
        ("digest", manifest.digest),
        ("taken over", _taken(manifest.taken)),
        ("size", f"{manifest.num_parameters:,} parameters, {manifest.weight_bytes / 1e6:,.1f} MB of weights"),
        ("context", f"{manifest.max_context:,} tokens"),
        ("vocabulary", f"{manifest.num_tokens:,} tokens of {manifest.vocab_size:,} ids"),
        ("end tokens", ", ".join(map(str, manifest.eos_token_ids)) or "none"),
        ("first token", f"{manifest.bos_token_id}, added: {'yes' if manifest.add_bos else 'no'}"),
        ("generation", ", ".join(f"{name} {value:g}" for name, value in generation.items()) or "not stated"),
        ("kv cache", f"{kv.num_layers} layers x {kv.num_kv_heads} heads x {kv.head_dim} {kv.dtype},"
                     f" {kv.bytes_per_token:,} bytes per token"),
        ("graph", f"IR {graph.ir_version}, {', '.join(f'{name} {number}' for name, number in graph.opsets.items())},"
                  f" {graph.num_nodes} nodes"),
        ("operators", ", ".join(f"{name} {count}" for name, count in graph.operators.items())),
        ("inputs", ", ".join(_signature(value) for value in _once_per_layer(graph.inputs))),
        ("outputs", ", ".join(_signature(value) for value in _once_per_layer(graph.outputs))),
        ("files", ", ".join(f"{name} {size / 1e6:,.2f} MB" for name, size in facts.file_bytes.items())),
    ]  # fmt: skip
    lines = [f"{label:12} {text}" for label, text in rows if text]
    drawn = ["structure", *draw_parts(facts.parts), *chart_errors(facts.parts)]
    verdict = list(describe_report(facts.report))
    if facts.report is not None and facts.report.verified and facts.doubts:
        verdict.append(f"{'since then':12} UNVERIFIED: {'; '.join(facts.doubts)}")
    return "\n".join([*lines, *drawn, *verdict]) + "\n"


def _taken(taken: TakenFacts | None) -> str:
    if taken is None:
        return ""
    groups = "rows" if taken.group_size is None else f"groups of {taken.group_size}"
    return f"{taken.num_matrices} matrices as {taken.method} quantized them, {taken.bits} bits in {groups}"


def _value(info: onnx.ValueInfoProto) -> GraphValue:
    tensor = info.type.tensor_type
    shape = tuple(dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim)
    return GraphValue(info.name, TensorProto.DataType.Name(tensor.elem_type), shape)


def _signature(value: GraphValue) -> str:
    return f"{value.name} {value.dtype.lower()}[{', '.join(map(str, value.shape))}]"


def _once_per_layer(values: tuple[GraphValue, ...]) -> Iterator[GraphValue]:
    """The caches of layer 0 stand for all layers."""
    for value in values:
        kind, _, rest = value.name.partition(".")
        if not rest:
            yield value
        elif rest.startswith("0."):
            yield GraphValue(f"{kind}.{{layer}}.{rest[2:]}", value.dtype, value.shape)
