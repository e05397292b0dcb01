"""What callers need of whatever runs a model: an engine in this process, in another one, or several. Knows no thread.

`Driver` runs one here, `workers.RemoteDriver` one in a process of its own, and `workers.Balancer` several of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from ortserve.plugins.api import CacheStats, Entry
from ortserve.runtime.engine import EngineStats
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Delta, Grammar, Request
from ortserve.runtime.scheduling.backlog import QueueStats
from ortserve.runtime.speculation.stats import DraftStats


class Outlet(Protocol):
    """Where a request's deltas go."""

    def deliver(self, deltas: Sequence[Delta]) -> None:
        """Take all deltas of one step for this outlet. Called on the engine's thread: it must not block or raise."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """An engine process now. `pid` None: there is none, it is being started again or has failed too often."""

    name: str  # cuda:0, cpu-1
    plan: EnginePlan
    pid: int | None
    num_requests: int  # that have not ended
    num_restarts: int


class EngineDriver(Protocol):
    """Every method may be called from any thread. Implementations say only what they do besides."""

    @property
    def manifest(self) -> Manifest:
        """What export wrote down about the model."""

    @property
    def plan(self) -> EnginePlan:
        """Rows, context and memory; of several engines together."""

    @property
    def ended(self) -> Future[None]:
        """Settled when everything has ended; an `EngineClosedError` if it was not closed but died."""

    @property
    def max_context(self) -> int:
        """Tokens of one sequence, prompt and output."""

    @property
    def healthy(self) -> bool:
        """Requests are accepted."""

    @property
    def has_failed(self) -> bool:
        """It has died and will not come back."""

    def workers(self) -> tuple[WorkerState, ...]:
        """The processes; none of an engine in this one."""

    def stats(self) -> EngineStats:
        """As of the last step."""

    def queue_stats(self) -> QueueStats:
        """What waits now, and for how long."""

    def cache_stats(self) -> CacheStats:
        """The prompt cache as of the last step."""

    def draft_stats(self) -> DraftStats | None:
        """The drafter as of the last step; None without one."""

    def cache_entries(self) -> Future[list[Entry]]:
        """What the prompt cache keeps."""

    def cache_pin(self, tokens: Sequence[int], salt: bytes, ttl_s: float) -> Future[int]:
        """Keep what is cached of a prefix for `ttl_s` seconds (0 ends it); the tokens it covers."""

    def cache_clear(self, salt: bytes | None) -> Future[int]:
        """Forget one salt's prefixes, or all; the blocks forgotten."""

    def submit(self, request: Request, outlet: Outlet) -> None:
        """Queue a request; its deltas go to `outlet` until one carries `finish`.

        A grammar is compiled first, unless `prepare` has done it lately. Raises `RequestError` (`ContextLengthError`)
        when it can never run or its id is in use, `OverloadedError` when the queue is full, `WaitTooLongError` when it
        would wait longer than it may, `EngineClosedError` after `close` or when the engine has died.
        """

    def check_room(self) -> None:
        """Raise `OverloadedError` when the queue is full: sooner than after the work of making a request."""

    def prepare(self, grammar: Grammar) -> None:
        """Compile a grammar, so that submitting requests with it takes no time; may take a tenth of a second.

        Raises `RequestError` that says what is wrong with it, and `EngineClosedError` as `submit` does.
        """

    def cancel(self, request_id: str) -> None:
        """End a request; its outlet gets a last delta with `CANCELLED`. Unknown and finished ids are ignored."""

    def close(self, *, drain_s: float = 0.0) -> None:
        """Accept nothing more, give running requests up to `drain_s` seconds, cancel the rest, and stop."""
