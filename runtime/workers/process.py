"""An engine process: opens a model, does what the server says, and reports each step. Knows no other process.

`launch` starts it as `python -m ortserve.runtime.workers.process SOCKET PARENT`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import TypeAlias, TypeVar

from ortserve.plugins.api import CacheStats
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.engine import EngineStats
from ortserve.runtime.errors import EngineClosedError, ModelError
from ortserve.runtime.request import Delta
from ortserve.runtime.workers.channel import Channel
from ortserve.runtime.workers.crossing import departing
from ortserve.runtime.workers.messages import (
    HELLO,
    Alive,
    Answered,
    Cancel,
    Clear,
    Close,
    Ended,
    ListEntries,
    NotStarted,
    Pin,
    Prepare,
    Ready,
    Refused,
    Start,
    Stepped,
    Submit,
    decode_command,
    decode_start,
    encode,
)
from ortserve.runtime.workers.reporting import report_logs

Value = TypeVar("Value")
Opener: TypeAlias = Callable[[Path, EngineConfig], Driver]

REPORT_EVERY_S = 0.25  # of an engine that steps without adding a token, and of what a drafter has done
ALIVE_EVERY_S = 1.0  # or eight times within the limit of a step, if that is shorter
PROGRESS_EVERY_S = 0.05  # what estimates of waiting rest on: much shorter than a wait that matters
_PR_SET_PDEATHSIG = 1
_FLUSH_S = 5.0


def main(arguments: Sequence[str]) -> int:
    """Serve the socket of that number until it or the engine ends; 1 when the engine cannot be opened or has died."""
    descriptor, parent = map(int, arguments)
    # The server drains its processes: what a terminal or a supervisor sends to all of them is meant for the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with(parent)
    channel = Channel(socket.socket(fileno=descriptor))
    channel.send(HELLO)
    start = channel.receive()
    if start is None:
        return 1
    report_logs(channel)
    try:
        wanted = decode_start(start)
        sys.path[:] = wanted.import_path
        driver = open_driver_of(wanted)
    except BaseException as error:  # also what a plugin raises: the server says it to whoever has started it
        channel.send(encode(NotStarted(departing(error))))
        channel.flush(_FLUSH_S)
        return 1
    return _Desk(channel, driver, alive_every_s=min(ALIVE_EVERY_S, wanted.config.step_limit_s / 8)).run()


def _die_with(parent: int) -> None:
    """End with the thread that has started this process, however it ends; the socket's end is the other sign."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was too late to ask
        sys.exit(1)


def open_driver_of(start: Start) -> Driver:
    """What the server has asked for. Raises what opening it raises, and `ModelError` for a folder that has changed."""
    module, _, name = start.opener.partition(":")
    opener: Opener = getattr(import_module(module), name)
    driver = opener(Path(start.folder), start.config)
    if driver.manifest.digest != start.digest:
        driver.close()
        raise ModelError(f"{start.folder} has become another model since the server began: restart the server")
    return driver


class _Desk:
    """Takes commands on the main thread, and hands out what the engine's thread adds."""

    def __init__(self, channel: Channel, driver: Driver, *, alive_every_s: float = ALIVE_EVERY_S) -> None:
        """Something is said at least every `alive_every_s` seconds."""
        self._channel = channel
        self._alive_every_s = alive_every_s
        self._driver = driver
        self._reporting = threading.Lock()
        self._stats: EngineStats | None = None  # as reported last, like those that follow
        self._cache: CacheStats | None = None
        self._drafts_s = self._progress_s = float("-inf")  # when
        self._compiling: SimpleQueue[Prepare | Submit] = SimpleQueue()
        self._to_compile: dict[str, bool] = {}  # requests that wait for their grammar; whether they have been cancelled
        self._has_died = False

    def run(self) -> int:
        """Until the server hangs up or the engine ends."""
        threading.Thread(target=self._compile_all, name="ortserve-grammars", daemon=True).start()
        self._channel.send(encode(Ready(self._driver.plan)))
        self._channel.wait_at_most(min(REPORT_EVERY_S, self._alive_every_s))
        self._driver.ended.add_done_callback(self._end)
        said_s = monotonic()
        while True:
            if monotonic() - said_s >= self._alive_every_s:
                self._channel.send(encode(Alive()))
                said_s = monotonic()
            try:
                message = self._channel.receive()
            except BlockingIOError:  # nothing to do: prompt chunks, which add no token, show here
                if self._driver.stats() is not self._stats:
                    self._report(())
                continue
            if message is None:
                break
            self._obey(message)
        self._driver.close()
        return int(self._has_died)

    def deliver(self, deltas: Sequence[Delta]) -> None:
        """Part of `Outlet`: all deltas of a step, as every request has this outlet."""
        self._report(tuple(deltas))

    def _obey(self, message: bytes) -> None:
        driver = self._driver
        match decode_command(message):
            case Submit() as submission:
                if submission.request.grammar is None:
                    self._submit(submission)
                else:
                    with self._reporting:
                        self._to_compile[submission.request.id] = False
                    self._compiling.put(submission)
            case Cancel(request_id):
                with self._reporting:
                    is_early = request_id in self._to_compile
                    if is_early:
                        self._to_compile[request_id] = True
                if not is_early:
                    driver.cancel(request_id)
            case Prepare() as preparation:
                self._compiling.put(preparation)
            case ListEntries(ticket):
                self._answer(ticket, driver.cache_entries(), lambda kept: Answered(ticket, entries=tuple(kept)))
            case Pin(ticket, tokens, salt, ttl_s):
                self._answer(ticket, driver.cache_pin(tokens, salt, ttl_s), partial(Answered, ticket))
            case Clear(ticket, salt):
                self._answer(ticket, driver.cache_clear(salt), partial(Answered, ticket))
            case Close(drain_s):  # beside whatever comes meanwhile
                threading.Thread(target=driver.close, kwargs={"drain_s": drain_s}, daemon=True).start()

    def _submit(self, submission: Submit) -> None:
        try:
            self._driver.submit(submission.request, self)
        except Exception as error:
            self._channel.send(encode(Refused(submission.request.id, departing(error))))

    def _compile_all(self) -> None:
        """Grammars take up to a tenth of a second, and cancelling must not wait for them."""
        while True:
            work = self._compiling.get()
            if isinstance(work, Submit):
                self._submit(work)
                with self._reporting:
                    is_cancelled = self._to_compile.pop(work.request.id)
                if is_cancelled:
                    self._driver.cancel(work.request.id)
                continue
            try:
                self._driver.prepare(work.grammar)
            except Exception as error:
                self._channel.send(encode(Answered(work.ticket, error=departing(error))))
            else:
                self._channel.send(encode(Answered(work.ticket)))

    def _report(self, deltas: tuple[Delta, ...]) -> None:
        driver = self._driver
        with self._reporting:
            stats, cache, now_s = driver.stats(), driver.cache_stats(), monotonic()
            drafts = progress = None
            has_ended = any(delta.finish is not None for delta in deltas)
            if has_ended or now_s - self._drafts_s >= REPORT_EVERY_S:
                drafts, self._drafts_s = driver.draft_stats(), now_s
            if has_ended or now_s - self._progress_s >= PROGRESS_EVERY_S:
                progress, self._progress_s = driver.progress(), now_s
            changed = None if cache == self._cache else cache
            self._channel.send(encode(Stepped(deltas, stats, progress, changed, drafts)))
            self._stats, self._cache = stats, cache

    def _answer(self, ticket: int, answer: Future[Value], say: Callable[[Value], Answered]) -> None:
        """When it is there, on the engine's thread."""

        def send(done: Future[Value]) -> None:
            error = done.exception()
            answered = say(done.result()) if error is None else Answered(ticket, error=departing(error))
            self._channel.send(encode(answered))

        answer.add_done_callback(send)

    def _end(self, ended: Future[None]) -> None:
        error = ended.exception()
        self._has_died = isinstance(error, EngineClosedError)
        self._channel.send(encode(Ended(None if error is None else departing(error))))
        self._channel.flush(_FLUSH_S)
        self._channel.hang_up()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
