"""The structure of an exported graph: bytes and recipes layer by layer, as values and drawn. Reads no weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from ortserve.runtime.manifest import MatrixFacts
from ortserve.runtime.parity import LayerError

BAR = 40  # characters of the longest bar


@dataclass(frozen=True, slots=True)
class PartFacts:
    """The embedding, one layer, or what comes after the layers."""

    name: str
    num_bytes: int  # of weights, scales and biases
    matrices: tuple[MatrixFacts, ...]
    error: float | None  # of the residual stream at its end, by the report; None: not measured


def read_parts(
    graph: onnx.GraphProto, matrices: tuple[MatrixFacts, ...], layers: tuple[LayerError, ...]
) -> tuple[PartFacts, ...]:
    """In the order of the computation; what belongs to no layer is `before` or `after` them."""
    sizes: dict[str, int] = {}
    for tensor in graph.initializer:
        part = _part(tensor.name)
        sizes[part] = sizes.get(part, 0) + _num_bytes(tensor)
    errors = {f"layer {one.layer}": one.error for one in layers}
    return tuple(
        PartFacts(
            part,
            sizes[part],
            tuple(matrix for matrix in matrices if _part(matrix.name) == part),
            errors.get(part),
        )
        for part in sorted(sizes, key=_place)
    )


def draw_parts(parts: tuple[PartFacts, ...]) -> Iterator[str]:
    """Each part with its size and recipes; layers that are alike are drawn once."""
    for first, last in _alike(parts):
        part = parts[first]
        name = part.name if first == last else f"layers {part.name.split()[1]} to {parts[last].name.split()[1]}"
        each = "" if first == last else " each"
        yield f"  {name:18} {part.num_bytes / 1e6:10,.3f} MB{each}"
        for matrix in part.matrices:
            lost = "" if matrix.error is None or first != last else f", loses {matrix.error:.2%}"
            yield f"    {matrix.name.split('.', 2)[-1]:24} {matrix.precision:5} {_rounding(matrix)}{lost}"


def chart_errors(parts: tuple[PartFacts, ...]) -> Iterator[str]:
    """One bar for each layer, on a logarithmic scale: ten times the error is the same step longer everywhere."""
    measured = [(part.name, part.error) for part in parts if part.error is not None]
    if not measured:
        return
    yield "  error of the residual stream after each layer, against the exact one (logarithmic)"
    least = min((error for _, error in measured if error > 0), default=1.0)
    most = max(error for _, error in measured)
    span = max(math.log10(most / least), 1.0) if most > 0 else 1.0
    for name, error in measured:
        share = 0.0 if error <= 0 else (1 + math.log10(error / least)) / (1 + span)
        yield f"  {name:10} {error:9.2e} {'#' * max(1, round(BAR * min(share, 1.0)))}"


def _rounding(matrix: MatrixFacts) -> str:
    words = {
        "none": "inputs as they are",
        "token": "inputs rounded per token",
        "static": "inputs rounded by a calibrated scale",
        "block": "inputs rounded per block",
    }
    folded = ", outliers folded" if matrix.folded else ""
    blocks = "" if matrix.block_size is None else f"in blocks of {matrix.block_size}, "
    return f"{blocks}{words.get(matrix.rounding, matrix.rounding)}{folded}"


def _part(name: str) -> str:
    layer = re.match(r"layers\.(\d+)\.", name)
    if layer is not None:
        return f"layer {layer[1]}"
    return "after" if name.startswith(("lm_head", "final_norm")) else "before"


def _place(part: str) -> tuple[int, int]:
    if part.startswith("layer "):
        return 1, int(part.split()[1])
    return (0, 0) if part == "before" else (2, 0)


def _num_bytes(tensor: onnx.TensorProto) -> int:
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return len(tensor.raw_data) or tensor.ByteSize()


def _alike(parts: tuple[PartFacts, ...]) -> Iterator[tuple[int, int]]:
    """First and last of each run of layers with the same size and recipes."""
    first = 0
    for place in range(1, len(parts) + 1):
        if place == len(parts) or _likeness(parts[place]) != _likeness(parts[first]):
            yield first, place - 1
            first = place


def _likeness(part: PartFacts) -> tuple[object, ...]:
    kind = part.name.split()[0]
    return (kind, part.num_bytes, *((one.precision, one.rounding, one.folded) for one in part.matrices))
