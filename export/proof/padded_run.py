"""Runs a graph of layout "padded", for proofs: once without any cache, and through the engine's own runner.

What another exporter made is proved as it will be served: copying keys and values in and out is a part of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.export.errors import ExportError
from ortserve.export.proof.graph_run import RowInput
from ortserve.runtime.errors import ModelError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.padded.runner import PaddedRunner
from ortserve.runtime.padded_graph import PaddedGraph
from ortserve.runtime.session import Session
from ortserve.runtime.slots.kv import SlotKvStore, block_size
from ortserve.runtime.step import Row, Step

MOST_LOGIT_ROWS = 512


class PaddedGraphRun:
    """A session, and rows of its own with room for `capacity` tokens each."""

    def __init__(self, folder: Path, manifest: Manifest, *, num_rows: int, capacity: int) -> None:
        session = open_session(folder / manifest.graph)
        size = block_size(manifest.kv)
        store = SlotKvStore(manifest.kv, num_rows=num_rows, capacity=-(-capacity // size) * size, num_host_blocks=0)
        self._runner = PaddedRunner(manifest, session, store, max_logit_rows=max(MOST_LOGIT_ROWS, num_rows * capacity))

    def run(self, rows: Sequence[RowInput]) -> list[NDArray[np.float32]]:
        """One step. Logits after every token, per row `[len(tokens), vocab_size]`; at least one token in all."""
        step = Step(
            number=0,
            moves=(),
            rows=tuple(
                Row(f"row {slot}", slot, row.num_past, tuple(row.tokens), len(row.tokens))
                for slot, row in enumerate(rows)
                if row.tokens
            ),
        )
        logits = self._runner.run(step)
        bounds = np.cumsum([0, *(len(row.tokens) for row in rows)])
        return [logits[start:stop].copy() for start, stop in pairwise(bounds)]


def open_session(path: Path) -> Session:
    """Raises `ExportError` naming what ONNX Runtime lacks for the graph on the CPU."""
    try:
        return Session(path)
    except ModelError as error:
        raise ExportError(f"{error}: it cannot be served on the CPU") from None


def whole_logits(
    session: Session, graph: PaddedGraph, tokens: Sequence[int], *, cache_shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Logits after every token of one row that stores nothing, in one call: `[len(tokens), vocab_size]`.

    `cache_shape` is layers, heads and channels. Raises `ExportError` when the graph cannot run, or gives others.
    """
    num_layers, num_heads, head_dim = cache_shape
    length, dtype = len(tokens), np.dtype(graph.integers)
    feeds: dict[str | None, NDArray[Any]] = {
        graph.input_ids: np.array([tokens], dtype),
        graph.attention_mask: np.ones((1, length), dtype),
        graph.position_ids: np.arange(length, dtype=dtype)[None],
        graph.last_places: np.array([length - 1], np.int32),
        graph.total_length: np.full((1,) * graph.total_length_rank, length, np.int32),
    }
    for layer in range(num_layers):
        for name in (graph.past_key, graph.past_value):
            feeds[name.format(layer=layer)] = np.zeros((1, num_heads, 0, head_dim), graph.floats)
    try:
        (logits,) = session.run({name: value for name, value in feeds.items() if name}, [graph.logits])
    except ModelError as error:
        raise ExportError(f"the graph does not run: {error}") from None
    if logits.ndim != 3 or logits.shape[1] != length:
        raise ExportError(
            f"the graph gives logits of shape {list(logits.shape)} for {length} tokens: those after every token are"
            " needed, so export it without pruning its head"
        )
    found: NDArray[np.float32] = logits[0].astype(np.float32)
    return found
