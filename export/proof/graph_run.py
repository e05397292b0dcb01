"""Runs an exported graph row by row through the contract of `ortserve.runtime.manifest`, for proofs and tests.

Deliberately plain: it shares no code with the engine, so that it can be compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.export.errors import ExportError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.session import int8_precision_mode


@dataclass(frozen=True, slots=True)
class RowInput:
    """What one row computes in a run: `tokens` after `num_past` cached ones; no tokens: the row is idle."""

    tokens: Sequence[int]
    num_past: int
    first_row: int = 0  # of the rotary tables, where position 0 is


class GraphRun:
    """A session and its KV tensors of `num_rows` rows with room for `capacity` tokens each."""

    def __init__(self, folder: Path, manifest: Manifest, *, num_rows: int, capacity: int, num_threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # failures are raised, not also printed
        options.intra_op_num_threads = num_threads
        options.add_session_config_entry("session.x64quantprecision", int8_precision_mode())
        options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / manifest.graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the binding raises its own types, all plain Exceptions
            reason = str(error).strip().splitlines()[0]
            raise ExportError(f"{folder / manifest.graph} cannot be loaded ({reason}): export it again") from None
        self._binding = self._session.io_binding()
        self._capacity = capacity
        self._num_rows = num_rows
        shape = (num_rows, manifest.kv.num_kv_heads, capacity, manifest.kv.head_dim)
        self._kv: list[Any] = []
        for layer in range(manifest.kv.num_layers):
            for part in ("key", "value"):
                value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, manifest.kv.dtype), "cpu", 0)
                self._binding.bind_ortvalue_input(f"past.{layer}.{part}", value)
                self._binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
                self._kv.append(value)

    def run(self, rows: Sequence[RowInput]) -> list[NDArray[np.float32]]:
        """One model call. Logits after every token, per row `[len(tokens), vocab_size]`; at least one token in all."""
        assert len(rows) == self._num_rows
        feeds = pack_rows(rows, capacity=self._capacity)
        for name, value in feeds.items():
            self._binding.bind_cpu_input(name, value)
        self._binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(self._binding)
        logits = next(
            output.numpy()
            for output, info in zip(self._binding.get_outputs(), self._output_order(), strict=True)
            if info == "logits"
        )
        bounds = np.cumsum([0, *(len(row.tokens) for row in rows)])
        return [logits[start:stop].copy() for start, stop in pairwise(bounds)]

    def _output_order(self) -> list[str]:
        """Outputs come in the order they were first bound."""
        return [*(f"kv{index}" for index in range(len(self._kv))), "logits"]


def pack_rows(rows: Sequence[RowInput], *, capacity: int) -> dict[str, NDArray[Any]]:
    """The graph's inputs except the cache, with logits wanted for every token."""
    lengths = [len(row.tokens) for row in rows]
    longest = max(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    pad = np.zeros((len(rows), longest), np.int64)
    unpad: list[int] = []
    positions: list[int] = []
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        pad[index, :length] = starts[index] + np.arange(length)
        unpad.extend(index * longest + offset for offset in range(length))
        first = row.first_row + row.num_past
        positions.extend(range(first, first + length))
    return {
        "input_ids": np.array([token for row in rows for token in row.tokens], np.int64),
        "position_ids": np.array(positions, np.int64),
        "seqlens_k": np.array([max(row.num_past + len(row.tokens) - 1, 0) for row in rows], np.int32),
        "query_lengths": np.array(lengths, np.int32),
        "total_length": np.array(capacity, np.int32),
        "pad_index": pad,
        "unpad_index": np.array(unpad, np.int64),
        "logit_index": np.arange(sum(lengths), dtype=np.int64),
    }
