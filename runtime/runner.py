"""Runs a Step: moves KV bytes, packs the rows, calls the session. Knows tokens and slots, no requests' lives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ortserve.runtime.batch import Batch, build_batch
from ortserve.runtime.kv import SlotKvStore
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.session import Binding, Session
from ortserve.runtime.step import Step

Logits = npt.NDArray[np.float32]


class Runner:
    """One model on the CPU with its KV rows bound in place.

    For each power of two of rows there is a binding of the first so many slots: attention pads to the longest query, so
    a step that uses few low slots does not pay for all of them.
    """

    def __init__(self, manifest: Manifest, session: Session, store: SlotKvStore, *, max_logit_rows: int) -> None:
        self._session = session
        self._store = store
        self._bindings: dict[int, Binding] = {}
        self._logits = np.empty((max_logit_rows, manifest.vocab_size), np.float32)

    def run(self, step: Step) -> Logits:
        """Execute the step; returns logits [step.num_logits, vocab], valid until the next run."""
        self._store.apply(step.moves)
        if not step.rows:
            return self._logits[:0]
        num_rows = self._num_bound_rows(max(row.slot for row in step.rows))
        batch = build_batch(step, num_rows=num_rows, capacity=self._store.capacity)
        binding = self._bindings.get(num_rows) or self._bind_rows(num_rows)
        logits = self._logits[: len(batch.logit_index)]
        _bind_batch(binding, batch)
        if len(logits) == 0:
            # The graph needs one wanted position at least; a middle chunk of a prompt wants none and drops it.
            binding.bind_input("logit_index", np.zeros(1, np.int64))
            binding.bind_output("logits", self._logits[:1])
        else:
            binding.bind_output("logits", logits)
        binding.run()
        return logits

    def _num_bound_rows(self, highest_slot: int) -> int:
        power: int = 1 << highest_slot.bit_length()
        return min(power, self._store.num_rows)

    def _bind_rows(self, num_rows: int) -> Binding:
        binding = self._session.binding()
        for tensor in self._store.tensors():
            shape = (num_rows, *tensor.row_shape)
            binding.bind_shared(f"past.{tensor.name}", f"present.{tensor.name}", tensor.address, shape)
        self._bindings[num_rows] = binding
        return binding


def _bind_batch(binding: Binding, batch: Batch) -> None:
    binding.bind_input("input_ids", batch.input_ids)
    binding.bind_input("position_ids", batch.position_ids)
    binding.bind_input("seqlens_k", batch.seqlens_k)
    binding.bind_input("query_lengths", batch.query_lengths)
    binding.bind_input("total_length", batch.total_length)
    binding.bind_input("pad_index", batch.pad_index)
    binding.bind_input("unpad_index", batch.unpad_index)
    binding.bind_input("logit_index", batch.logit_index)


def load_session(folder: Path, manifest: Manifest, *, num_threads: int | None) -> Session:
    """Load an exported folder's graph."""
    return Session(folder / manifest.graph, num_threads=num_threads)
