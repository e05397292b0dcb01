"""Which waiting inputs are encoded together: close lengths up to a budget of padded tokens. Knows no session.

Every input of a batch is computed as wide as the longest, so inputs of close lengths belong together. Requests take
turns: each batch is built around the longest waiting input of the next request, and filled with the inputs, of any
request, whose lengths are closest to it. A request of thousands of inputs therefore delays a short one by one batch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

MAX_WASTE = 0.1  # share of a batch's places that may be padding: a quarter costs what batching gains


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """One text, or a pair of texts, as token ids with the model's special tokens."""

    ids: tuple[int, ...]
    second_start: int | None = None  # where the second text of a pair begins; None: one text

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class QueuedInput:
    """An input and whose it is."""

    request: int
    place: int  # among the request's inputs
    input: EncoderInput

    @property
    def key(self) -> tuple[int, int, int]:
        """Order by length, and a total one."""
        return len(self.input), self.request, self.place


class EncoderQueue:
    """Inputs that wait, of all requests, sorted by length."""

    def __init__(self, *, batch_tokens: int, max_batch: int) -> None:
        """`batch_tokens` bounds longest input times inputs of a batch; one longer input goes alone."""
        self._batch_tokens = batch_tokens
        self._max_batch = max_batch
        self._sorted: list[QueuedInput] = []
        self._pending: dict[int, list[QueuedInput]] = {}  # by request, longest last; those taken are dropped lazily
        self._turns: deque[int] = deque()  # requests, next first

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, request: int, inputs: Sequence[EncoderInput]) -> None:
        """Queue the inputs of a new request."""
        queued = sorted((QueuedInput(request, place, input) for place, input in enumerate(inputs)), key=_key)
        self._pending[request] = queued
        self._turns.append(request)
        self._sorted = sorted([*self._sorted, *queued], key=_key)  # two sorted runs: linear

    def remove(self, request: int) -> None:
        """Forget what waits of a request."""
        if self._pending.pop(request, None) is not None:
            self._turns.remove(request)
            self._sorted = [queued for queued in self._sorted if queued.request != request]

    def take(self) -> list[QueuedInput]:
        """The next batch, at least one input; empty when nothing waits."""
        if not self._turns:
            return []
        request = self._turns[0]
        anchor = bisect_left(self._sorted, self._pending[request][-1].key, key=_key)
        lengths = [len(queued.input) for queued in self._sorted]
        start, stop = choose_slice(lengths, anchor, batch_tokens=self._batch_tokens, max_batch=self._max_batch)
        batch = self._sorted[start:stop]
        del self._sorted[start:stop]
        self._turns.rotate(-1)
        taken: dict[int, set[int]] = {}
        for queued in batch:
            taken.setdefault(queued.request, set()).add(queued.place)
        for name, places in taken.items():
            left = [queued for queued in self._pending[name] if queued.place not in places]
            if left:
                self._pending[name] = left
            else:
                del self._pending[name]
                self._turns.remove(name)
        return batch


def choose_slice(lengths: Sequence[int], anchor: int, *, batch_tokens: int, max_batch: int) -> tuple[int, int]:
    """The slice of ascending `lengths` around `anchor` to encode together.

    It grows by the neighbour closer in length, while longest times count stays within `batch_tokens` and padding
    within `MAX_WASTE`.
    """
    start, stop = anchor, anchor + 1
    total = lengths[anchor]

    def fits(first: int, end: int, tokens: int) -> bool:
        places = lengths[end - 1] * (end - first)
        return end - first <= max_batch and places <= batch_tokens and places - tokens <= MAX_WASTE * places

    while True:
        down = start > 0 and fits(start - 1, stop, total + lengths[start - 1])
        up = stop < len(lengths) and fits(start, stop + 1, total + lengths[stop])
        if down and up:
            down = lengths[anchor] - lengths[start - 1] <= lengths[stop] - lengths[anchor]
        if down:
            start -= 1
            total += lengths[start]
        elif up:
            total += lengths[stop]
            stop += 1
        else:
            return start, stop


def _key(queued: QueuedInput) -> tuple[int, int, int]:
    return queued.key
