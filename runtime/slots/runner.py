"""Runs a Step: moves KV bytes, packs the rows, calls the session. Knows tokens and slots, no requests' lives."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ortserve.runtime.host.heap import trim_heap
from ortserve.runtime.host.huge_pages import use_huge_pages
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.session import Binding, Session
from ortserve.runtime.slots.batch import Batch, build_batch
from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.step import Step

LARGE_BYTES = 64 << 20  # of weights: smaller ones lie in the processor's own cache

Logits = npt.NDArray[np.float32]
_INPUTS = tuple(field.name for field in fields(Batch))


class Runner:
    """One model on the CPU with its KV rows bound in place.

    Attention pads every bound slot to the longest query, so a step binds only the slots around its own: as many as a
    power of two, from a multiple of it on. So there are at most twice as many bindings as slots.

    Products of 4-bit matrices take packed tokens in pairs, and a last odd one by a kernel that sums in another order
    (ONNX Runtime on x86). Layer by layer 8-bit rounding makes that a difference of up to 0.07 in a log-probability:
    a model that has some computes an even number of tokens, since a pair reads as many bytes as one. The last layer,
    where only wanted positions are left, rounds once: `deterministic` makes their number even as well.
    """

    def __init__(
        self,
        manifest: Manifest,
        session: Session,
        store: SlotKvStore,
        *,
        max_logit_rows: int,
        deterministic: bool = False,
    ) -> None:
        self._session = session
        self._store = store
        self._even = manifest.has_codes
        self._even_logits = manifest.has_codes and deterministic
        self._bindings: dict[range, _BoundRows] = {}  # by slots
        self._logits = np.empty((max_logit_rows + 1, manifest.vocab_size), np.float32)

    def run(self, step: Step) -> Logits:
        """Execute the step; returns logits [step.num_logits, vocab], valid until the next run."""
        self._store.apply(step.moves)
        if not step.rows:
            return self._logits[:0]
        slots = self._slots_around([row.slot for row in step.rows])
        capacity, first = self._store.capacity, slots.start
        batch = build_batch(step, num_rows=len(slots), capacity=capacity, first_slot=first, even=self._even)
        bound = self._bindings.get(slots) or self._bind(slots)
        for name in _INPUTS:
            bound.feed(name, getattr(batch, name))
        count = num_computed = len(batch.logit_index)
        # The graph needs one wanted position at least; a middle chunk of a prompt wants none and drops it.
        if count == 0 or (self._even_logits and count % 2):
            num_computed += 1
            bound.feed("logit_index", np.append(batch.logit_index, 0))
        bound.write_logits(self._logits[:num_computed])
        bound.binding.run()
        return self._logits[:count]

    def _slots_around(self, used: list[int]) -> range:
        lowest, highest = min(used), max(used)
        shift = (lowest ^ highest).bit_length()  # of what their numbers differ in
        first: int = lowest >> shift << shift
        return range(first, min(first + (1 << shift), self._store.num_rows))

    def _bind(self, slots: range) -> _BoundRows:
        binding = self._session.binding()
        for tensor in self._store.tensors(slots.start):
            shape = (len(slots), *tensor.row_shape)
            names = f"past.{tensor.name}", f"present.{tensor.name}"
            binding.bind_shared(*names, tensor.address, tensor.dtype, shape)
        bound = self._bindings[slots] = _BoundRows(binding)
        return bound


class _BoundRows:
    """A binding whose inputs stay bound while their shapes stay: then a step only copies its numbers in."""

    def __init__(self, binding: Binding) -> None:
        self.binding = binding
        self._inputs: dict[str, npt.NDArray[np.generic]] = {}
        self._num_logits = 0

    def feed(self, name: str, values: npt.NDArray[np.generic]) -> None:
        bound = self._inputs.get(name)
        if bound is not None and bound.shape == values.shape:
            bound[...] = values
            return
        self._inputs[name] = values
        self.binding.bind_input(name, values)

    def write_logits(self, logits: Logits) -> None:
        """Always the first rows of the same buffer."""
        if len(logits) != self._num_logits:
            self.binding.bind_output("logits", logits)
            self._num_logits = len(logits)


def load_session(
    folder: Path, manifest: Manifest, *, num_threads: int | None, turn: AbstractContextManager[object] | None = None
) -> Session:
    """Load an exported folder's graph. Sessions that share a `turn` never run at once."""
    session = Session(folder / manifest.graph, num_threads=num_threads, turn=turn)
    if manifest.weight_bytes >= LARGE_BYTES:
        trim_heap()  # what loading has left behind need not be moved
        use_huge_pages()
    return session
