"""Watches what the products of a model are given in a float pass over calibration text.

The pass is the reference's, one matrix in memory at a time: calibrating needs no float graph on disk. Knows no recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture, Experts, Layer, Linear, Norm
from ortserve.export.errors import ExportError
from ortserve.export.float_reference.forward import CheckpointWeights, final_states
from ortserve.export.sources.checkpoint import Checkpoint

Floats = NDArray[np.float32]
Kind = Literal["qkv", "attention_output", "gate_up", "routed", "down", "head"]
NUM_SAMPLED_TOKENS = 192
NUM_SAMPLED_ROWS = 128  # of each matrix
NUM_SAMPLED_LINEARS = 9  # a router and experts evenly spaced, where there are many
ROWS_AT_ONCE = 8  # sampled rows lie together in pieces of this size: reading single rows takes longer


@dataclass(frozen=True, slots=True)
class Place:
    """An input that one or more products share."""

    kind: Kind
    linears: tuple[Linear, ...]
    can_divide: bool  # what computes the input can take over a divisor of each channel
    head_dim: int
    group: int  # query heads over one key-value head


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What was seen at a place, and a sample of the rows it is multiplied by."""

    place: Place
    largest: Floats  # [K], magnitudes
    mean_square: Floats  # [K]
    sample: Floats  # [tokens, K]: the first of each sequence, those of largest magnitude, and others
    rows: Floats  # [rows, K], the products' scales included


def places(architecture: Architecture) -> Iterator[Place]:
    """In order of the pass."""
    for layer in architecture.layers:
        yield from _layer_places(architecture, layer)
    yield Place("head", (head_linear(architecture),), True, architecture.head_dim, 1)


def head_linear(architecture: Architecture) -> Linear:
    """The product with the output matrix."""
    return Linear((architecture.lm_head,))


def watch_products(
    checkpoint: Checkpoint,
    architecture: Architecture,
    sequences: Sequence[Sequence[int]],
    report: Callable[[Observed], None],
) -> None:
    """Run the pass; `report` is called once for each place, and what it is given is not kept.

    Raises `ExportError` naming the tensor behind the first values that are not finite.
    """
    watched = _WatchedWeights(checkpoint, architecture, sequences, report)
    states = final_states(watched, architecture, sequences)
    watched.see(head_linear(architecture), states)


def _layer_places(architecture: Architecture, layer: Layer) -> Iterator[Place]:
    def place(kind: Kind, *linears: Linear, norm: Norm | None = None) -> Place:
        can_divide = norm is not None or kind in ("attention_output", "down")
        return Place(
            kind, linears, can_divide, architecture.head_dim, architecture.num_heads // architecture.num_kv_heads
        )

    yield place("qkv", layer.attention.qkv, norm=layer.attention_norm)
    yield place("attention_output", layer.attention.output)
    if isinstance(layer.mlp, Experts):
        # the router sees every token; what one expert's last product sees is too little to choose by
        pairs = (linear for expert in layer.mlp.experts for linear in (expert.gate, expert.up))
        yield place("routed", layer.mlp.router, *pairs, norm=layer.mlp_norm)
        return
    yield place("gate_up", layer.mlp.gate, layer.mlp.up, norm=layer.mlp_norm)
    yield place("down", layer.mlp.down)


class _WatchedWeights(CheckpointWeights):
    """The checkpoint's weights, reporting what they are multiplied by."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        architecture: Architecture,
        sequences: Sequence[Sequence[int]],
        report: Callable[[Observed], None],
    ) -> None:
        super().__init__(checkpoint)
        self._places = {place.linears[0]: place for place in places(architecture)}
        self._firsts = np.cumsum([0, *(len(sequence) for sequence in sequences[:-1])])
        self._report = report

    def multiply(self, linear: Linear, value: Floats) -> Floats:
        """See `CheckpointWeights.multiply`."""
        if linear in self._places:
            self.see(linear, value)
        product = super().multiply(linear, value)
        if not np.isfinite(product).all():
            raise ExportError(f"{linear.weights[0]} holds values that are not finite: download the checkpoint again")
        return product

    def see(self, linear: Linear, value: Floats) -> None:
        """Report the place whose first product is `linear`."""
        place = self._places[linear]
        magnitude = np.abs(value)
        if not np.isfinite(magnitude).all():
            raise ExportError(
                f"{linear.weights[0]} is multiplied by values that are not finite: download the checkpoint again"
            )
        num_linears = min(len(place.linears), NUM_SAMPLED_LINEARS)
        spaced = np.linspace(0, len(place.linears) - 1, num_linears).astype(int).tolist()
        rows = np.concatenate([_sample_rows(self.checkpoint, place.linears[index]) for index in spaced])
        chosen = _sample_tokens(magnitude.max(axis=1), self._firsts)
        mean_square = np.mean(np.square(value), axis=0)
        self._report(Observed(place, magnitude.max(axis=0), mean_square, value[chosen], rows))


def _sample_tokens(largest: Floats, firsts: NDArray[np.int64]) -> NDArray[np.int64]:
    """A quarter each of first tokens and of those with the largest values, and evenly spaced ones."""
    quarter = NUM_SAMPLED_TOKENS // 4
    spaced = np.linspace(0, len(largest) - 1, min(len(largest), NUM_SAMPLED_TOKENS // 2)).astype(np.int64)
    return np.unique(np.concatenate([firsts[:quarter], np.argsort(-largest, kind="stable")[:quarter], spaced]))


def _sample_rows(checkpoint: Checkpoint, linear: Linear) -> Floats:
    """Rows from all parts of a product's matrices."""
    pieces: list[Floats] = []
    for name in linear.weights:
        first, end = linear.rows or (0, checkpoint.stored(name).shape[0])
        num_pieces = max(1, min(end - first, NUM_SAMPLED_ROWS // len(linear.weights)) // ROWS_AT_ONCE)
        for start in np.linspace(first, max(first, end - ROWS_AT_ONCE), num_pieces).astype(int).tolist():
            pieces.append(checkpoint.read_rows(name, start, min(start + ROWS_AT_ONCE, end)))
    rows = np.concatenate(pieces) * np.float32(linear.scale)
    if not np.isfinite(rows).all():
        raise ExportError(f"{linear.weights[0]} holds values that are not finite: download the checkpoint again")
    return rows
