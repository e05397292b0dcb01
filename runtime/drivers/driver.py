"""Gives an engine its thread, and callers a thread-safe door: one inbox in, one wake-up per step out.

Knows nothing of what a request means. `async_engine` is the side of an event loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

import structlog

from ortserve.plugins.api import CacheStats, Entry
from ortserve.runtime.drivers.engine_driver import Outlet, WorkerState
from ortserve.runtime.drivers.outlets import Outlets
from ortserve.runtime.drivers.watchdog import STEP_LIMIT_S, Watchdog
from ortserve.runtime.engine import Engine, EngineStats
from ortserve.runtime.errors import EngineClosedError, EngineHungError
from ortserve.runtime.grammar.constraint import Constraint
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Delta, Grammar, Request
from ortserve.runtime.scheduling.admission import check_request
from ortserve.runtime.scheduling.backlog import Backlog, Progress, QueueStats
from ortserve.runtime.scheduling.reuse import Reuse
from ortserve.runtime.speculation.stats import DraftStats

Answer = TypeVar("Answer")
_STALL_S = 0.05
_JOIN_S = 30.0  # one step of the largest model on a slow machine, with a margin


@dataclass(frozen=True, slots=True)
class _Submission:
    request: Request
    constraint: Constraint | None  # compiled by whoever submitted it: the engine's thread has no time for that


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Errand:
    """Something to be done on the engine's thread between two steps; either settles a future."""

    run: Callable[[], None]
    refuse: Callable[[EngineClosedError], None]  # instead, when the thread ends before


class Driver:
    """An `EngineDriver`: one engine on one thread."""

    def __init__(
        self, engine: Engine, manifest: Manifest, plan: EnginePlan, *, step_limit_s: float = STEP_LIMIT_S
    ) -> None:
        """A step that takes longer than `step_limit_s`, or than `Watchdog` makes of it, is taken never to end."""
        self.manifest = manifest
        self.plan = plan
        self.ended: Future[None] = Future()  # settled when the thread has ended; an `EngineClosedError` if it died
        self._engine = engine  # until the thread ends: whoever keeps the driver must not keep what it computed with
        self._inbox: deque[_Submission | _Cancel | _Errand] = deque()
        self._changed = threading.Condition()
        self._stats = EngineStats()
        self._outlets = Outlets(self._changed, Backlog(plan), self.cancel)
        self._cache_stats = CacheStats()
        self._draft_stats: DraftStats | None = None
        self._has_failed = False
        self._is_hung = False  # a step does not end; guarded by _changed
        self._closed_reason: str | None = None  # set once no request is accepted any more
        self._drain_until: float | None = None
        engine.bell.answer_with(self._wake)
        self._thread = threading.Thread(target=self._run, name="ortserve-engine", daemon=True)
        self._watchdog = Watchdog(step_limit_s, self._hang)
        self._thread.start()

    @property
    def max_context(self) -> int:
        """Part of `EngineDriver`."""
        return self.plan.max_context

    @property
    def healthy(self) -> bool:
        """Part of `EngineDriver`."""
        return self._closed_reason is None

    @property
    def has_failed(self) -> bool:
        """Part of `EngineDriver`: its thread has died, and only a new one helps."""
        return self._has_failed

    def workers(self) -> tuple[WorkerState, ...]:
        """Part of `EngineDriver`: the engine is in this process."""
        return ()

    def stats(self) -> EngineStats:
        """Part of `EngineDriver`."""
        return self._stats

    def progress(self) -> Progress:
        """What estimates of waiting rest on, as of the last step."""
        return self._outlets.backlog.progress

    def cache_stats(self) -> CacheStats:
        """Part of `EngineDriver`."""
        return self._cache_stats

    def draft_stats(self) -> DraftStats | None:
        """Part of `EngineDriver`."""
        return self._draft_stats

    def cache_entries(self) -> Future[list[Entry]]:
        """Part of `EngineDriver`."""
        return self._errand(lambda reuse: reuse.entries())

    def cache_pin(self, tokens: Sequence[int], salt: bytes, ttl_s: float) -> Future[int]:
        """Part of `EngineDriver`."""
        return self._errand(lambda reuse: reuse.pin(tokens, salt, ttl_s))

    def cache_clear(self, salt: bytes | None) -> Future[int]:
        """Part of `EngineDriver`."""
        return self._errand(lambda reuse: reuse.clear(salt))

    def submit(self, request: Request, outlet: Outlet) -> None:
        """Part of `EngineDriver`."""
        check_request(request, self.manifest, self.plan)
        constraint = None if request.grammar is None else self._running().grammars.compile(request.grammar)
        with self._changed:
            if self._closed_reason is not None:
                raise EngineClosedError(self._closed_reason)
            self._outlets.add(request, outlet, monotonic())
            self._inbox.append(_Submission(request, constraint))
            self._changed.notify()

    def check_room(self) -> None:
        """Part of `EngineDriver`."""
        with self._changed:
            self._outlets.backlog.check_room(monotonic())

    def queue_stats(self) -> QueueStats:
        """Part of `EngineDriver`."""
        with self._changed:
            return self._outlets.backlog.stats(monotonic())

    def prepare(self, grammar: Grammar) -> None:
        """Part of `EngineDriver`."""
        self._running().grammars.compile(grammar)

    def cancel(self, request_id: str) -> None:
        """Part of `EngineDriver`."""
        with self._changed:
            self._inbox.append(_Cancel(request_id))
            self._changed.notify()

    def close(self, *, drain_s: float = 0.0) -> None:
        """Part of `EngineDriver`."""
        with self._changed:
            if self._closed_reason is None:
                self._closed_reason = "the engine is shutting down"
            self._drain_until = monotonic() + drain_s
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            wait([self.ended], drain_s + _JOIN_S)
            if self.ended.done() and not self._is_hung:
                self._thread.join(_JOIN_S)

    def _running(self) -> Engine:
        with self._changed:
            if self._closed_reason is not None:
                raise EngineClosedError(self._closed_reason)
            return self._engine

    def _errand(self, ask: Callable[[Reuse], Answer]) -> Future[Answer]:
        """Ask the prompt cache on the engine's thread. The future raises `EngineClosedError` after the end."""
        future: Future[Answer] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(ask(self._engine.reuse))
            except Exception as error:
                future.set_exception(error)

        with self._changed:
            if self._closed_reason is not None:
                future.set_exception(EngineClosedError(self._closed_reason))
            else:
                self._inbox.append(_Errand(run, future.set_exception))
                self._changed.notify()
        return future

    def _wake(self) -> None:
        with self._changed:
            if not (self.ended.done() or self._is_hung):
                self._engine.is_stalled = False
                self._changed.notify()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._watchdog.begin()
                self._turn()
                self._watchdog.end()
            self._cancel_all()
            self._engine.close()
        except BaseException as error:  # a defect of the engine itself: nobody may wait for it forever
            structlog.get_logger("ortserve.driver").exception("the engine's thread has died")
            self._die(f"the engine has failed ({type(error).__name__})")
        self._watchdog.close()
        with self._changed:
            del self._engine
            if self._is_hung:  # said already; the step has ended after all, and its memory is free
                return
            if self._has_failed:
                self.ended.set_exception(EngineClosedError(self._closed_reason or ""))
            else:
                self.ended.set_result(None)

    def _hang(self, seconds: float) -> None:
        """Called by the watchdog, on its thread: the engine's own will not tell anybody any more."""
        reason = f"a step has not ended for {seconds:.0f} s"
        structlog.get_logger("ortserve.driver").error(
            "the engine hangs", model=self.manifest.name, reason=reason, requests=len(self._outlets),
            remedy="its process has to be restarted",
        )  # fmt: skip
        with self._changed:
            if self.ended.done():
                return
            self._is_hung = True
        self._lose_all(reason)
        self.ended.set_exception(EngineHungError(reason))

    def _lose_all(self, reason: str) -> None:
        """Accept nothing more, and tell everybody who waits."""
        with self._changed:
            self._has_failed = True
            self._closed_reason = reason
            commands, self._inbox = self._inbox, deque()
            lost = self._outlets.losses(reason)
        for command in commands:
            if isinstance(command, _Errand):
                command.refuse(EngineClosedError(reason))
        self._outlets.hand_out(lost, Progress())

    def _die(self, reason: str) -> None:
        """Tell everybody who waits, and let go of what the engine holds as far as it still can."""
        self._lose_all(reason)
        try:
            self._engine.close()
        except Exception:  # the same defect, most likely
            structlog.get_logger("ortserve.driver").exception("a failed engine could not be closed")

    def _wait_for_work(self) -> bool:
        """Block until something is to be done; False when the driver is closed and drained."""
        with self._changed:
            while True:
                if self._is_hung:  # it was given up while it took its time
                    return False
                if self._drain_until is not None and (
                    monotonic() >= self._drain_until or not (self._inbox or self._engine.has_work)
                ):
                    return False
                if self._inbox or (self._engine.has_work and not self._engine.is_stalled):
                    return True
                # A stalled engine waits for its cache, which rings; looking again after a while costs nothing.
                self._changed.wait(_STALL_S if self._engine.has_work else None)
                self._engine.is_stalled = False

    def _turn(self) -> None:
        """Take what has arrived, run one step, hand out what it added."""
        deltas = self._take_in()
        if self._engine.has_work:
            deltas += self._engine.step()
        self._stats = self._engine.stats()
        self._cache_stats = self._engine.reuse.stats()
        if self._engine.drafting is not None:
            self._draft_stats = self._engine.drafting.stats.copy()
        self._outlets.hand_out(deltas, self._engine.progress())

    def _take_in(self) -> list[Delta]:
        """Carry out all commands; returns the last deltas of the requests they ended."""
        with self._changed:
            commands, self._inbox = self._inbox, deque()
        ended: list[Delta | None] = []
        for command in commands:
            if isinstance(command, _Submission):
                self._engine.add(command.request, command.constraint)
            elif isinstance(command, _Errand):
                command.run()
            else:
                ended.append(self._engine.cancel(command.request_id))
        return [delta for delta in ended if delta is not None]

    def _cancel_all(self) -> None:
        """End what a closing driver leaves unfinished."""
        deltas = self._take_in()
        ended = [self._engine.cancel(sequence.request.id) for sequence in list(self._engine.scheduler.sequences)]
        self._outlets.hand_out(deltas + [delta for delta in ended if delta is not None], Progress())
