"""One engine process with a driver's interface. When it dies its requests are lost, and it does not come back.

Whether a request may run is decided here, from what the process has said of itself: nobody waits to submit one.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from time import monotonic
from typing import TypeVar

import structlog

from ortserve.plugins.api import CacheStats, Entry
from ortserve.runtime.drivers.engine_driver import Outlet, WorkerState
from ortserve.runtime.drivers.outlets import Outlets
from ortserve.runtime.engine import EngineStats
from ortserve.runtime.errors import EngineClosedError
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Delta, FinishReason, Grammar, Request
from ortserve.runtime.scheduling.admission import check_request
from ortserve.runtime.scheduling.backlog import Backlog, Progress, QueueStats
from ortserve.runtime.speculation.stats import DraftStats
from ortserve.runtime.workers.crossing import arrived
from ortserve.runtime.workers.known_grammars import KnownGrammars
from ortserve.runtime.workers.launch import WorkerProcess, WorkerSpec
from ortserve.runtime.workers.log import show
from ortserve.runtime.workers.messages import (
    Alive,
    Answered,
    Cancel,
    Clear,
    Close,
    Command,
    Ended,
    ListEntries,
    Logged,
    Pin,
    Prepare,
    Refused,
    Stepped,
    Submit,
    decode_report,
    encode,
)

Value = TypeVar("Value")

NO_LIMIT = 2**62  # of the process's own queue: the one here is the one that refuses
_CLOSE_S = 30.0  # one step of the largest model on a slow machine, with a margin


@dataclass(frozen=True, slots=True)
class Load:
    """What a process has to do: requests that have not ended, and prompt tokens of those that have said nothing yet."""

    num_requests: int
    num_tokens: int


class RemoteDriver:
    """An `EngineDriver`. Its thread starts the process and reads what it says; the process dies with it."""

    def __init__(self, spec: WorkerSpec, grammars: KnownGrammars | None = None) -> None:
        """Returns at once: wait for `started`."""
        self.name = spec.name
        self.manifest = spec.manifest
        self.started: Future[EnginePlan] = Future()  # raises what opening the model has raised
        self.ended: Future[None] = Future()
        self._spec = spec
        self._grammars = grammars or KnownGrammars()
        self._lock = threading.Lock()  # of all that follows
        self._process: WorkerProcess | None = None
        self._opened: Outlets | None = None  # once started
        self._tickets: dict[int, Future[Answered]] = {}
        self._numbers = itertools.count()
        self._stats = EngineStats()
        self._cache_stats = CacheStats()
        self._draft_stats: DraftStats | None = None
        self._closed_reason: str | None = None
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name=f"ortserve-worker-{spec.name}", daemon=True)
        self._thread.start()

    @property
    def plan(self) -> EnginePlan:
        """The process's, with the bounds of the queue here."""
        return self.started.result(0)

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
        """Part of `EngineDriver`: the process has died, or the engine's thread in it."""
        return self._has_failed

    @property
    def load(self) -> Load:
        """What has been submitted and not been answered, as of now."""
        with self._lock:
            return Load(len(self._outlets), self._outlets.num_silent_tokens)

    def workers(self) -> tuple[WorkerState, ...]:
        """Part of `EngineDriver`."""
        with self._lock:
            pid = None if self._process is None or self._closed_reason is not None else self._process.pid
            return (WorkerState(self.name, self.plan, pid, len(self._outlets), 0),)

    def stats(self) -> EngineStats:
        """Part of `EngineDriver`."""
        return self._stats

    def queue_stats(self) -> QueueStats:
        """Part of `EngineDriver`."""
        with self._lock:
            return self._outlets.backlog.stats(monotonic())

    def cache_stats(self) -> CacheStats:
        """Part of `EngineDriver`."""
        return self._cache_stats

    def draft_stats(self) -> DraftStats | None:
        """Part of `EngineDriver`, as of a quarter of a second ago or the last request that has ended."""
        return self._draft_stats

    def cache_entries(self) -> Future[list[Entry]]:
        """Part of `EngineDriver`."""
        return self._ask(ListEntries, lambda answered: list(answered.entries))

    def cache_pin(self, tokens: Sequence[int], salt: bytes, ttl_s: float) -> Future[int]:
        """Part of `EngineDriver`."""
        return self._ask(lambda ticket: Pin(ticket, tuple(tokens), salt, ttl_s), lambda answered: answered.number)

    def cache_clear(self, salt: bytes | None) -> Future[int]:
        """Part of `EngineDriver`."""
        return self._ask(lambda ticket: Clear(ticket, salt), lambda answered: answered.number)

    def submit(self, request: Request, outlet: Outlet) -> None:
        """Part of `EngineDriver`. The process is waited for only by a grammar that nobody has prepared."""
        check_request(request, self.manifest, self.plan)
        if request.grammar is not None and request.grammar not in self._grammars:
            self.prepare(request.grammar)
        sent = request if request.max_wait_s is None else replace(request, max_wait_s=None)  # it is judged here
        message = encode(Submit(sent))
        with self._lock:
            process = self._running()
            self._outlets.add(request, outlet, monotonic())
            process.channel.send(message)

    def has(self, request_id: str) -> bool:
        """A request of that id has not ended."""
        return self._opened is not None and request_id in self._opened

    def check_room(self) -> None:
        """Part of `EngineDriver`."""
        with self._lock:
            self._outlets.backlog.check_room(monotonic())

    def prepare(self, grammar: Grammar) -> None:
        """Part of `EngineDriver`."""
        self.begin_to_prepare(grammar).result()

    def begin_to_prepare(self, grammar: Grammar) -> Future[None]:
        """As `prepare`, whose errors the future raises."""

        def remember(_: Answered) -> None:
            self._grammars.add(grammar)

        return self._ask(lambda ticket: Prepare(ticket, grammar), remember)

    def cancel(self, request_id: str) -> None:
        """Part of `EngineDriver`."""
        with self._lock:
            if self.has(request_id) and self._process is not None:
                self._process.channel.send(encode(Cancel(request_id)))

    def close(self, *, drain_s: float = 0.0) -> None:
        """Part of `EngineDriver`. A process that does not end in time is killed."""
        with self._lock:
            if self._closed_reason is None:
                self._closed_reason = "the engine is shutting down"
            process = self._process
            if process is not None:
                if self.started.done():
                    process.channel.send(encode(Close(drain_s)))
                else:
                    process.kill()
        if threading.current_thread() is self._thread:
            return
        self._thread.join(drain_s + _CLOSE_S)
        if self._thread.is_alive() and process is not None:
            process.kill()
            self._thread.join(_CLOSE_S)

    @property
    def _outlets(self) -> Outlets:
        assert self._opened is not None, "the process has not started"
        return self._opened

    def _running(self) -> WorkerProcess:
        """Call it with the lock held."""
        if self._closed_reason is not None or self._process is None:
            raise EngineClosedError(self._closed_reason or "the engine process has not started")
        return self._process

    def _ask(self, message: Callable[[int], Command], read: Callable[[Answered], Value]) -> Future[Value]:
        """The future raises what the process answers, and `EngineClosedError` when it ends before."""
        answer: Future[Value] = Future()
        answer.set_running_or_notify_cancel()  # nobody can take it back
        asked: Future[Answered] = Future()

        def settle(done: Future[Answered]) -> None:
            error = done.exception()
            if error is None:
                answer.set_result(read(done.result()))
            else:
                answer.set_exception(error)

        asked.add_done_callback(settle)
        with self._lock:
            try:
                process = self._running()
            except EngineClosedError as error:
                refusal: EngineClosedError | None = error
            else:
                refusal = None
                ticket = next(self._numbers)
                self._tickets[ticket] = asked
                process.channel.send(encode(message(ticket)))
        if refusal is not None:
            asked.set_exception(refusal)
        return answer

    def _run(self) -> None:
        try:
            process = WorkerProcess(self._spec)
            with self._lock:
                self._process = process
                is_closed = self._closed_reason is not None
            if is_closed:
                process.kill()
            plan = self._open(process)
        except BaseException as error:
            with self._lock:
                self._closed_reason = str(error)
                self._has_failed = True
            self.started.set_exception(error)
            self.ended.set_exception(EngineClosedError(str(error)))
            return
        self.started.set_result(plan)
        reason = "the engine process has ended"
        try:
            is_closed, reason = self._listen(process)
        except Exception as error:  # a defect of this side, or a message that is none
            structlog.get_logger("ortserve.worker").exception("an engine process is not understood", worker=self.name)
            is_closed, reason = False, f"it is not understood ({type(error).__name__})"
            process.kill()
        if reason:  # the end of a process that hangs may take its time: nobody waits for that
            self._lose(f"the engine process {self.name} {reason}")
        how = process.end()
        if is_closed:
            self._lose("the engine has been closed", has_failed=False)
            self.ended.set_result(None)
            return
        failure = f"the engine process {self.name} {reason or how}"
        self._lose(failure)
        self.ended.set_exception(EngineClosedError(failure))

    def _open(self, process: WorkerProcess) -> EnginePlan:
        config = self._spec.config
        unbounded = replace(config, max_waiting=NO_LIMIT, max_waiting_tokens=NO_LIMIT)
        try:
            plan = process.open(replace(self._spec, config=unbounded))
        except BaseException:
            process.kill()
            process.end()
            raise
        plan = replace(plan, max_waiting=config.max_waiting, max_waiting_tokens=config.max_waiting_tokens)
        self._opened = Outlets(self._lock, Backlog(plan), self.cancel)
        return plan

    def _listen(self, process: WorkerProcess) -> tuple[bool, str]:
        """Until the process says no more: whether its engine has been closed, and what it died of if it has said it."""
        is_closed, reason = False, ""
        for message in process.listen(self._spec.config.step_limit_s):
            match decode_report(message):
                case Stepped() as stepped:
                    self._take(stepped)
                case Refused(request_id, error):
                    refused = Delta(request_id, (), finish=FinishReason.ERROR, error=str(arrived(error)))
                    self._outlets.hand_out((refused,))
                case Answered() as answered:
                    self._answer(answered)
                case Logged() as line:
                    show(self.name, line)
                case Alive():
                    pass
                case Ended(error):
                    is_closed = error is None
                    reason = "" if error is None else f"has died: {arrived(error)}"
                case unexpected:
                    raise AssertionError(unexpected)
        return is_closed, "" if is_closed else reason or process.silence

    def _take(self, stepped: Stepped) -> None:
        self._stats = stepped.stats
        if stepped.cache is not None:
            self._cache_stats = stepped.cache
        if stepped.drafts is not None:
            self._draft_stats = stepped.drafts
        self._outlets.hand_out(stepped.deltas, stepped.progress)

    def _answer(self, answered: Answered) -> None:
        with self._lock:
            asked = self._tickets.pop(answered.ticket)
        if answered.error is None:
            asked.set_result(answered)
        else:
            asked.set_exception(arrived(answered.error))

    def _lose(self, reason: str, *, has_failed: bool = True) -> None:
        """Accept nothing more, and tell everybody who waits."""
        with self._lock:
            if has_failed or self._closed_reason is None:
                self._closed_reason = reason
            self._has_failed = has_failed
            told = self._closed_reason
            tickets, self._tickets = list(self._tickets.values()), {}
            lost = self._outlets.losses(told)
            self._process = None
        for asked in tickets:
            asked.set_exception(EngineClosedError(told))
        self._outlets.hand_out(lost, Progress())
