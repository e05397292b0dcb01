"""What waits for an engine: bounds on it, and estimates of how long. Knows no thread, no tensors and no step.

Whoever asks for a row is put into the engine's own order, `FairOrder`, beside all that waits; then rows are handed out
as they become free. A request costs its prompt, at the measured price of a prompt token, and as much output as others
with such a limit have had, at that of a token in a full batch. Rows share the engine, so that a request takes as many
times its cost as there are rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from itertools import islice

import msgspec

from ortserve.runtime.errors import OverloadedError, WaitTooLongError
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Request, Usage
from ortserve.runtime.scheduling.fair_order import FairOrder
from ortserve.runtime.scheduling.pace import Costs

UNKNOWN_S = 1.0  # a wait, before anything has been measured
KEEP_S = 0.1  # so long, all of a flood share one look at the queue
KEEP_SHARE = 32  # unless the queue has grown by this part of it
_REMEMBER = 0.05  # weight of the newest request that has ended
_CUT_OFF = 0.9  # replies as long as that part of their limits would have gone on


class RunningState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A sequence that has a row, as of the last step."""

    num_pending: int  # tokens to compute; one while it decodes
    num_output: int


@dataclass(frozen=True, slots=True)
class Progress:
    """An engine as of its last step."""

    running: Mapping[str, RunningState] = field(default_factory=dict)  # by request id
    has_queue: bool = False  # some found no row
    fair: FairOrder = field(default_factory=FairOrder)
    costs: Costs | None = None  # None: too little has run


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What waits beyond the rows that are free, and the estimated seconds until one that came now had a row."""

    num_requests: int = 0
    num_tokens: int = 0  # of prompts
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A request that has not ended; one of those that `FairOrder` arranges."""

    request: Request
    arrival: int
    waiting_since_s: float
    num_pending: int
    num_prompt: int  # tokens to compute: later choices of a call take the prompt over from the first


@dataclass(slots=True)
class _Replies:
    """How long those of close limits have been."""

    num_tokens: float = 0.0
    share: float = 0.0  # of their limits
    _is_new: bool = True

    def add(self, num_tokens: int, limit: int) -> None:
        weight = 1.0 if self._is_new else _REMEMBER
        self._is_new = False
        self.num_tokens += weight * (num_tokens - self.num_tokens)
        self.share += weight * (min(num_tokens / max(limit, 1), 1.0) - self.share)


@dataclass(frozen=True, slots=True)
class _Turns:
    """Who gets a row, and how many seconds after `at_s`; the last of `start_s` is for one that comes after them."""

    at_s: float
    num_arrivals: int  # before it
    order: list[_Entry]
    start_s: list[float]
    wait_s: dict[tuple[bytes, int, int], float]  # of one that comes now, by tenant, priority and weight


class Backlog:
    """All requests of one engine that have not ended. Not thread-safe."""

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan
        self._entries: dict[str, _Entry] = {}  # by arrival
        self._num_arrivals = 0
        self._num_prompt_tokens = 0  # of all entries
        self._progress = Progress()
        self._replies: dict[int, _Replies] = {}  # by the magnitude of their limit
        self._cached_share = 0.0  # of prompts
        self._turns: _Turns | None = None

    def stats(self, now_s: float) -> QueueStats:
        """As of now."""
        num_requests = max(0, len(self._entries) - self._plan.num_rows)
        return QueueStats(num_requests, self.num_waiting_tokens, self.wait_s(now_s))

    @property
    def progress(self) -> Progress:
        """The engine as of its last step."""
        return self._progress

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of requests without a row, those for which one is free left out."""
        running = self._running()
        tokens = self._num_prompt_tokens - sum(self._entries[name].num_prompt for name in running)
        free = max(0, self._plan.num_rows - len(running))
        return tokens - sum(entry.num_prompt for entry in islice(self._waiting(), free))

    def check_room(self, now_s: float, num_prompt: int = 0) -> None:
        """Raise `OverloadedError` unless one more request with such a prompt may wait."""
        plan, num_waiting = self._plan, len(self._entries) - self._plan.num_rows
        if num_waiting >= plan.max_waiting:
            raise OverloadedError(
                f"{num_waiting} requests are waiting, which is the limit",
                retry_after_s=self._seconds_until(now_s, num_requests=1 + num_waiting - plan.max_waiting),
                limit=("requests", plan.max_waiting),
            )
        tokens = self.num_waiting_tokens
        excess = tokens + num_prompt - plan.max_waiting_tokens
        if tokens and excess > 0:  # what is longer than the limit may wait alone
            raise OverloadedError(
                f"prompts of {tokens} tokens are waiting, and the limit is {plan.max_waiting_tokens}",
                retry_after_s=self._seconds_until(now_s, num_tokens=excess),
                limit=("tokens", plan.max_waiting_tokens),
            )

    def add(self, request: Request, now_s: float) -> None:
        """Take a request in.

        Raises `OverloadedError` when the queue is full, and `WaitTooLongError` when it would wait longer for its row
        than it may.
        """
        entry = self._entry(request, now_s)
        self.check_room(now_s, entry.num_prompt)
        if request.max_wait_s is not None:
            self._check_wait(entry, request.max_wait_s, now_s)
        self._entries[request.id] = entry
        self._num_arrivals += 1
        self._num_prompt_tokens += entry.num_prompt

    def remove(self, request_id: str, usage: Usage | None) -> None:
        """A request has ended; learn from what it has used."""
        entry = self._entries.pop(request_id)
        self._num_prompt_tokens -= entry.num_prompt
        if usage is None:
            return
        limit = self._limit(entry.request)
        self._replies.setdefault(limit.bit_length(), _Replies()).add(usage.num_output_tokens, limit)
        if entry.num_prompt:
            share = min(1.0, usage.num_cached_tokens / entry.num_prompt)
            self._cached_share += _REMEMBER * (share - self._cached_share)

    def advance(self, progress: Progress) -> None:
        """The engine has run a step."""
        self._progress = progress

    def wait_s(self, now_s: float, request: Request | None = None) -> float:
        """Seconds until a request would get a row; without one: until whoever comes after all others would."""
        if request is None:
            return self._kept_turns(now_s).start_s[-1]
        return self._wait_of(self._entry(request, now_s), now_s)

    def _entry(self, request: Request, now_s: float) -> _Entry:
        length = len(request.prompt)
        is_copy = request.group is not None and request.choice > 0
        return _Entry(request, self._num_arrivals, now_s, length, 0 if is_copy else length)

    def _check_wait(self, entry: _Entry, longest_s: float, now_s: float) -> None:
        if len(self._entries) < self._plan.num_rows or self.wait_s(now_s) <= longest_s:
            return
        wait_s = self._wait_of(entry, now_s)
        if wait_s > longest_s:
            raise WaitTooLongError(
                f"this request would wait about {wait_s:.1f} s for its turn and may wait {max(longest_s, 0):.1f} s",
                retry_after_s=wait_s - longest_s,
            )

    def _wait_of(self, entry: _Entry, now_s: float) -> float:
        request = entry.request
        kind, known = (request.tenant, request.priority, request.weight), self._kept_turns(now_s).wait_s
        if kind not in known:
            fair, running = self._progress.fair.copy(), self._running_entries()
            order = fair.arrange([*self._waiting(), entry], running, now_s)
            is_spared = order[0] is entry and bool(fair.spared_for(entry, running))
            starts = zip(order, self._starts(order), strict=False)
            known[kind] = 0.0 if is_spared else next(start for one, start in starts if one is entry)
        return known[kind]

    def _seconds_until(self, now_s: float, *, num_requests: int = 0, num_tokens: int = 0) -> float:
        """Until so many of those that wait, or so many tokens of their prompts, have got rows."""
        if self._progress.costs is None:
            return UNKNOWN_S
        turns = self._kept_turns(now_s)
        for entry, start_s in zip(turns.order, turns.start_s, strict=False):
            num_requests -= 1
            num_tokens -= entry.num_prompt
            if num_requests <= 0 and num_tokens <= 0:
                return start_s
        return turns.start_s[-1]

    def _kept_turns(self, now_s: float) -> _Turns:
        turns = self._turns
        is_old = turns is None or not 0 <= now_s - turns.at_s < KEEP_S
        if turns is None or is_old or self._num_arrivals - turns.num_arrivals > len(turns.order) // KEEP_SHARE:
            order = self._progress.fair.copy().arrange(self._waiting(), self._running_entries(), now_s)
            turns = self._turns = _Turns(now_s, self._num_arrivals, order, list(self._starts(order)), {})
        return turns

    def _running_entries(self) -> list[_Entry]:
        return [self._entries[name] for name in self._running()]

    def _starts(self, order: list[_Entry]) -> Iterator[float]:
        """Seconds until each of them gets a row, and at last until one more would; 0 while nothing is measured."""
        progress, running = self._progress, self._running()
        costs = progress.costs or Costs(0.0, 0.0)
        # Memory for fewer sequences than rows shows in who runs while others wait.
        num_rows = len(running) if running and progress.has_queue else self._plan.num_rows
        free_at = [
            num_rows * (state.num_pending * costs.prompt_s + self._num_left(name, state) * costs.output_s)
            for name, state in running.items()
        ]
        free_at += [0.0] * (num_rows - len(free_at))
        heapify(free_at)
        for entry in order:
            start_s = free_at[0]
            yield start_s
            prompt_s = entry.num_prompt * (1 - self._cached_share) * costs.prompt_s
            heapreplace(free_at, start_s + num_rows * (prompt_s + self._num_expected(entry.request) * costs.output_s))
        yield free_at[0]

    def _num_left(self, name: str, state: RunningState) -> float:
        """Output tokens to come; whoever has said more than others is taken to say half as much again."""
        request = self._entries[name].request
        expected = self._num_expected(request)
        left = max(expected - state.num_output, expected / 2)
        return min(left, max(self._limit(request) - state.num_output, 0))

    def _num_expected(self, request: Request) -> float:
        """Output tokens of requests with such a limit."""
        limit = self._limit(request)
        if not self._replies:
            return limit
        magnitude = limit.bit_length()
        nearest = min(self._replies, key=lambda known: abs(known - magnitude))
        replies = self._replies[nearest]
        if nearest == magnitude:
            return limit * replies.share
        # Replies that their own limit has ended say nothing of what a larger one allows.
        return limit if replies.share > _CUT_OFF else min(limit, replies.num_tokens)

    def _limit(self, request: Request) -> int:
        room = self._plan.max_context - len(request.prompt)
        limit = request.sampling.max_tokens
        return room if limit is None else min(limit, room)

    def _running(self) -> dict[str, RunningState]:
        """Those with a row that have not ended meanwhile."""
        return {name: state for name, state in self._progress.running.items() if name in self._entries}

    def _waiting(self) -> Iterator[_Entry]:
        running = self._progress.running
        return (entry for name, entry in self._entries.items() if name not in running)
