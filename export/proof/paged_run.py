"""Runs an exported graph of layout "pages" row by row on the CPU, for proofs and tests.

Deliberately plain: it shares no code with the engine, so that it can be compared with it. Pages are dealt out in
scattered order, so that a graph that ignores its page table is found out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.export.errors import ExportError
from ortserve.export.proof.graph_run import GraphRun, RowInput
from ortserve.export.proof.padded_run import PaddedGraphRun
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.pages.emulation import emulate

MAX_BYTES = 2**31 - 2**24  # protobuf's limit for a model that is handed over in memory, with room for the nodes


class PagedGraphRun:
    """The graph in CPU operators, and pages for `num_rows` rows with room for `capacity` tokens each."""

    def __init__(self, folder: Path, manifest: Manifest, *, num_rows: int, capacity: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            model = emulate(folder / manifest.graph)
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # protobuf, onnx and onnxruntime raise types of their own
            reason = str(error).strip().splitlines()[0]
            raise ExportError(f"{folder / manifest.graph} cannot be loaded ({reason}): export it again") from None
        self._page_size = manifest.kv.page_size or 1
        self._num_rows = num_rows
        width = -(-capacity // self._page_size)
        self._table = np.random.default_rng(3).permutation(num_rows * width).reshape(num_rows, width).astype(np.int32)
        shape = (num_rows * width, self._page_size, manifest.kv.num_kv_heads, manifest.kv.head_dim)
        names = [f"{layer}.{part}" for layer in range(manifest.kv.num_layers) for part in ("key", "value")]
        self._kv: dict[str, NDArray[Any]] = {name: np.zeros(shape, np.float32) for name in names}

    def run(self, rows: Sequence[RowInput]) -> list[NDArray[np.float32]]:
        """One model call. Logits after every token, per row `[len(tokens), vocab_size]`; at least one token in all."""
        assert len(rows) == self._num_rows
        names = list(self._kv)
        feeds = {**self._feeds(rows), **{f"past.{name}": value for name, value in self._kv.items()}}
        logits, *present = self._session.run(["logits", *(f"present.{name}" for name in names)], feeds)
        self._kv = dict(zip(names, present, strict=True))
        bounds = np.cumsum([0, *(len(row.tokens) for row in rows)])
        return [logits[start:stop].copy() for start, stop in pairwise(bounds)]

    def _feeds(self, rows: Sequence[RowInput]) -> dict[str, NDArray[Any]]:
        lengths = [len(row.tokens) for row in rows]
        positions = [range(row.num_past, row.num_past + len(row.tokens)) for row in rows]
        slots = [
            int(self._table[index, position // self._page_size]) * self._page_size + position % self._page_size
            for index, places in enumerate(positions)
            for position in places
        ]
        ends = [row.num_past + len(row.tokens) for row in rows]
        return {
            "input_ids": np.array([token for row in rows for token in row.tokens], np.int64),
            "position_ids": np.array(
                [row.first_row + position for row, places in zip(rows, positions, strict=True) for position in places],
                np.int64,
            ),
            "cumulative_lengths": np.cumsum([0, *lengths]).astype(np.int32),
            "past_lengths": np.array([row.num_past for row in rows], np.int32),
            "page_table": self._table,
            "slot_mapping": np.array(slots, np.int32),
            "attention_bounds": np.array([max(lengths), max(ends), 1], np.int32),
            "logit_index": np.arange(sum(lengths), dtype=np.int64),
        }


def open_graph_run(
    folder: Path, manifest: Manifest, *, num_rows: int, capacity: int
) -> GraphRun | PagedGraphRun | PaddedGraphRun:
    """What runs a graph of this manifest's layout."""
    if manifest.kv.kind == "padded":
        return PaddedGraphRun(folder, manifest, num_rows=num_rows, capacity=capacity)
    kind = PagedGraphRun if manifest.kv.kind == "pages" else GraphRun
    return kind(folder, manifest, num_rows=num_rows, capacity=capacity)
