"""Several engine processes of one model as one driver: places requests, and starts again what has died.

Whichever engine runs a request, its tokens are the same. What an engine that has died was running is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from functools import partial
from time import monotonic

import structlog

from ortserve.plugins.api import CacheStats, Entry
from ortserve.runtime.drivers.engine_driver import Outlet, WorkerState
from ortserve.runtime.drivers.outlets import id_in_use
from ortserve.runtime.engine import EngineStats
from ortserve.runtime.errors import EngineClosedError, OverloadedError
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Grammar, Request
from ortserve.runtime.scheduling.backlog import QueueStats
from ortserve.runtime.speculation.stats import DraftStats
from ortserve.runtime.workers.known_grammars import KnownGrammars
from ortserve.runtime.workers.launch import WorkerSpec
from ortserve.runtime.workers.placing import Placing, Work
from ortserve.runtime.workers.remote import RemoteDriver
from ortserve.runtime.workers.restarts import Restarts
from ortserve.runtime.workers.summing import (
    cache_counters_of,
    counters_of,
    gather,
    join_entries,
    sum_cache_stats,
    sum_draft_stats,
    sum_plans,
    sum_queues,
    sum_stats,
)


class _Seat:
    """One engine process after another, all of one spec."""

    def __init__(self, spec: WorkerSpec, driver: RemoteDriver) -> None:
        self.spec = spec
        self.driver = driver  # the latest, started or not
        self.plan = driver.plan
        self.is_up = True
        self.has_given_up = False
        self.num_restarts = 0
        self.failures_s: list[float] = []
        self.past = EngineStats()  # counters of those that have died
        self.past_cache = CacheStats()
        self.past_drafts: DraftStats | None = None

    def bury(self) -> None:
        """Keep what the one that has died has counted."""
        self.is_up = False
        self.past = sum_stats([self.past, counters_of(self.driver.stats())])
        self.past_cache = sum_cache_stats([self.past_cache, cache_counters_of(self.driver.cache_stats())])
        self.past_drafts = sum_draft_stats([self.past_drafts, self.driver.draft_stats()])


class Balancer:
    """An `EngineDriver` of at least one process."""

    def __init__(self, specs: Sequence[WorkerSpec], restarts: Restarts | None = None) -> None:
        """Start all at the same time, and wait until they run.

        Raises what the first that cannot start has raised; none is left behind then.
        """
        self.manifest = specs[0].manifest
        self.ended: Future[None] = Future()
        self._restarts = restarts or Restarts()
        self._grammars = KnownGrammars()
        self._lock = threading.Lock()  # of seats, placing, and what has been closed
        self._closing = threading.Event()
        self._failure: str | None = None
        drivers = [RemoteDriver(spec, self._grammars) for spec in specs]
        try:
            for driver in drivers:
                driver.started.result()
        except BaseException:
            _close_all(drivers)
            raise
        self._seats = [_Seat(spec, driver) for spec, driver in zip(specs, drivers, strict=True)]
        self.plan: EnginePlan = sum_plans([seat.plan for seat in self._seats])
        self._placing = Placing(self.plan.block_size, has_cache=self.plan.cache_bytes > 0)
        for number in range(len(self._seats)):
            self._watch(number)

    @property
    def max_context(self) -> int:
        """Part of `EngineDriver`."""
        return self.plan.max_context

    @property
    def healthy(self) -> bool:
        """Part of `EngineDriver`: some engine accepts requests."""
        return not self._closing.is_set() and any(seat.is_up and seat.driver.healthy for seat in self._seats)

    @property
    def has_failed(self) -> bool:
        """Part of `EngineDriver`: every engine has died too often."""
        return self._failure is not None

    def workers(self) -> tuple[WorkerState, ...]:
        """Part of `EngineDriver`."""
        with self._lock:
            return tuple(_state_of(seat) for seat in self._seats)

    def stats(self) -> EngineStats:
        """Part of `EngineDriver`; counters go on where an engine that has died has left them."""
        with self._lock:
            return sum_stats([*(seat.past for seat in self._seats), *(one.stats() for one in self._live())])

    def queue_stats(self) -> QueueStats:
        """Part of `EngineDriver`."""
        return sum_queues([driver.queue_stats() for driver in self._live()])

    def cache_stats(self) -> CacheStats:
        """Part of `EngineDriver`."""
        with self._lock:
            live = [driver.cache_stats() for driver in self._live()]
            return sum_cache_stats([*(seat.past_cache for seat in self._seats), *live])

    def draft_stats(self) -> DraftStats | None:
        """Part of `EngineDriver`."""
        with self._lock:
            live = [driver.draft_stats() for driver in self._live()]
            return sum_draft_stats([*(seat.past_drafts for seat in self._seats), *live])

    def cache_entries(self) -> Future[list[Entry]]:
        """Part of `EngineDriver`."""
        return gather([driver.cache_entries() for driver in self._live()], join_entries)

    def cache_pin(self, tokens: Sequence[int], salt: bytes, ttl_s: float) -> Future[int]:
        """Part of `EngineDriver`: wherever it is cached."""
        return gather([driver.cache_pin(tokens, salt, ttl_s) for driver in self._live()], max)

    def cache_clear(self, salt: bytes | None) -> Future[int]:
        """Part of `EngineDriver`."""
        if salt is None:
            with self._lock:
                self._placing.clear()
        return gather([driver.cache_clear(salt) for driver in self._live()], sum)

    def submit(self, request: Request, outlet: Outlet) -> None:
        """Part of `EngineDriver`: the queue is full when that of every engine is."""
        refusals: list[OverloadedError] = []
        with self._lock:
            if self._closing.is_set():
                raise self._closed()
            if any(driver.has(request.id) for driver in self._live()):
                raise id_in_use(request)
            order = self._placing.order(request, self._work())
        for number in order:
            try:
                self._seats[number].driver.submit(request, outlet)
            except EngineClosedError:  # it has died this moment
                continue
            except OverloadedError as refusal:
                refusals.append(refusal)
                continue
            with self._lock:
                self._placing.place(request, number)
            return
        if refusals:
            raise min(refusals, key=lambda refusal: refusal.retry_after_s)
        raise self._closed()

    def check_room(self) -> None:
        """Part of `EngineDriver`."""
        refusals = []
        for driver in self._live():
            try:
                driver.check_room()
            except OverloadedError as refusal:
                refusals.append(refusal)
            else:
                return
        if refusals:
            raise min(refusals, key=lambda refusal: refusal.retry_after_s)

    def prepare(self, grammar: Grammar) -> None:
        """Part of `EngineDriver`: everywhere, as it may be needed anywhere; the first to be done is enough."""
        if grammar in self._grammars:
            return
        asked = {driver.begin_to_prepare(grammar) for driver in self._live()}
        while asked:
            done, asked = wait(asked, return_when=FIRST_COMPLETED)
            for one in done:
                error = one.exception()
                if error is None:
                    return
                if not isinstance(error, EngineClosedError):
                    raise error
        raise self._closed()

    def cancel(self, request_id: str) -> None:
        """Part of `EngineDriver`."""
        for driver in self._live():
            driver.cancel(request_id)

    def close(self, *, drain_s: float = 0.0) -> None:
        """Part of `EngineDriver`; all drain at the same time."""
        with self._lock:
            self._closing.set()
            drivers = [seat.driver for seat in self._seats]
        _close_all(drivers, drain_s)
        with self._lock:
            if not self.ended.done():
                self.ended.set_result(None)

    def _live(self) -> list[RemoteDriver]:
        return [seat.driver for seat in self._seats if seat.is_up]

    def _work(self) -> dict[int, Work]:
        work = {}
        for number, seat in enumerate(self._seats):
            if seat.is_up:
                load = seat.driver.load
                work[number] = Work(seat.plan.num_rows, load.num_requests, load.num_tokens)
        return work

    def _closed(self) -> EngineClosedError:
        if self._closing.is_set():
            return EngineClosedError("the engine is shutting down")
        whose = "the engine process" if len(self._seats) == 1 else "every engine process"
        return EngineClosedError(self._failure or f"{whose} has died and is being started again")

    def _watch(self, number: int) -> None:
        self._seats[number].driver.ended.add_done_callback(partial(self._mourn, number))

    def _mourn(self, number: int, ended: Future[None]) -> None:
        """On the thread of the driver that has ended."""
        if ended.exception() is None or self._closing.is_set():
            return
        with self._lock:
            self._seats[number].bury()
            self._placing.forget(number)
        name = f"ortserve-restart-{self._seats[number].spec.name}"
        threading.Thread(target=self._revive, args=(number, str(ended.exception())), name=name, daemon=True).start()

    def _revive(self, number: int, reason: str) -> None:
        seat, log = self._seats[number], structlog.get_logger("ortserve.worker")
        while not self._closing.is_set():
            now_s = monotonic()
            seat.failures_s.append(now_s)
            delay_s = self._restarts.delay_after(seat.failures_s, now_s)
            if delay_s is None:
                log.error("worker_failed", worker=seat.spec.name, reason=reason, restarts=seat.num_restarts)
                self._give_up(seat, reason)
                return
            log.error("worker_restarting", worker=seat.spec.name, reason=reason, delay_s=delay_s)
            if self._closing.wait(delay_s):
                return
            with self._lock:
                if self._closing.is_set():
                    return
                driver = seat.driver = RemoteDriver(seat.spec, self._grammars)
                seat.num_restarts += 1
            try:
                plan = driver.started.result()
            except Exception as error:  # whatever it is: another attempt, or none, is all there is to do
                reason = str(error) or type(error).__name__
                continue
            if plan.max_context < self.max_context:  # what has been promised to callers
                driver.close()
                reason = f"{seat.spec.name} has memory for {plan.max_context} tokens now, not for {self.max_context}"
                continue
            with self._lock:
                seat.plan, seat.is_up = plan, True
            log.info("worker_restarted", worker=seat.spec.name, seconds=round(monotonic() - now_s, 2), plan=str(plan))
            self._watch(number)
            return

    def _give_up(self, seat: _Seat, reason: str) -> None:
        with self._lock:
            seat.has_given_up = True
            if not all(one.has_given_up for one in self._seats) or self.ended.done():
                return
            self._failure = reason
        self.ended.set_exception(EngineClosedError(reason))


def _state_of(seat: _Seat) -> WorkerState:
    if not seat.is_up:
        return WorkerState(seat.spec.name, seat.plan, None, 0, seat.num_restarts)
    (own,) = seat.driver.workers()
    return replace(own, num_restarts=seat.num_restarts)


def _close_all(drivers: Sequence[RemoteDriver], drain_s: float = 0.0) -> None:
    closers = [threading.Thread(target=driver.close, kwargs={"drain_s": drain_s}) for driver in drivers]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
