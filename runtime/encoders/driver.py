"""Gives an encoder its thread and callers a thread-safe door: inputs in, a future of their rows out. Knows no text.

One failing batch is tried again input by input, so that only the request that carries the failing input loses.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import numpy as np
import structlog

from ortserve.runtime.drivers.watchdog import STEP_LIMIT_S, Watchdog
from ortserve.runtime.encoders.encoder import Rows
from ortserve.runtime.encoders.manifest import EncoderManifest
from ortserve.runtime.encoders.queue import EncoderInput, EncoderQueue, QueuedInput
from ortserve.runtime.errors import (
    EngineClosedError,
    EngineError,
    EngineHungError,
    OverloadedError,
    RequestError,
    WaitTooLongError,
)

_JOIN_S = 30.0


class Encodes(Protocol):
    """What the driver needs of an encoder."""

    manifest: EncoderManifest

    def encode(self, inputs: Sequence[EncoderInput]) -> Rows:
        """`[len(inputs), num_outputs]`; may raise anything."""


@dataclass(frozen=True, slots=True)
class EncoderLimits:
    """Bounds of one encoder."""

    batch_tokens: int = 2048  # longest input times inputs of one batch
    max_batch: int = 256  # inputs of one batch
    max_waiting: int = 8192  # inputs in the queue before new requests are refused
    max_length: int | None = None  # tokens of one input; None: the model's
    run_limit_s: float = STEP_LIMIT_S  # of one batch; one that takes longer, or than `Watchdog` allows, never ends


@dataclass(frozen=True, slots=True)
class EncoderStats:
    """As of the last batch."""

    num_waiting: int = 0  # inputs
    num_batches: int = 0
    num_failed_batches: int = 0
    num_inputs: int = 0  # encoded
    num_tokens: int = 0  # encoded, without padding
    num_padded: int = 0  # places computed for nothing


@dataclass(slots=True)
class _Request:
    """What is owed to one caller."""

    future: Future[Rows]
    rows: Rows
    num_missing: int


@dataclass(slots=True)
class _Counts:
    num_batches: int = 0
    num_failed_batches: int = 0
    num_inputs: int = 0
    num_tokens: int = 0
    num_padded: int = 0
    seconds: float = 0.0


class EncoderDriver:
    """One encoder on one thread. Every method may be called from any thread."""

    def __init__(
        self,
        encoder: Encodes,
        limits: EncoderLimits | None = None,
        *,
        turn: AbstractContextManager[object] | None = None,
    ) -> None:
        """`turn` is held during every run: encoders that share cores share a lock."""
        self.manifest = encoder.manifest
        self.limits = limits or EncoderLimits()
        self.max_length = min(self.manifest.max_length, self.limits.max_length or self.manifest.max_length)
        self.ended: Future[None] = Future()  # settled when the thread has ended; an `EngineClosedError` if it died
        self._encoder = encoder  # until the thread ends
        self._turn: AbstractContextManager[object] = turn or nullcontext()
        self._changed = threading.Condition()
        self._inbox: deque[tuple[int, Sequence[EncoderInput]] | int] = deque()  # new requests, and numbers of cancelled
        self._requests: dict[int, _Request] = {}  # that have not finished; guarded by _changed
        self._queue = EncoderQueue(batch_tokens=self.limits.batch_tokens, max_batch=self.limits.max_batch)
        self._last_number = 0
        self._num_waiting = 0  # inputs of unfinished requests; guarded by _changed
        self._counts = _Counts()
        self._has_failed = False
        self._is_hung = False  # a run does not end; guarded by _changed
        self._closed_reason: str | None = None
        self._drain_until: float | None = None
        self._thread = threading.Thread(target=self._run, name="ortserve-encoder", daemon=True)
        self._watchdog = Watchdog(self.limits.run_limit_s, self._hang)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Requests are accepted."""
        return self._closed_reason is None

    @property
    def has_failed(self) -> bool:
        """The encoder's thread has died or hangs: only a new one helps."""
        return self._has_failed

    def stats(self) -> EncoderStats:
        """As of the last batch."""
        counts = self._counts
        return EncoderStats(
            self._num_waiting,
            counts.num_batches,
            counts.num_failed_batches,
            counts.num_inputs,
            counts.num_tokens,
            counts.num_padded,
        )

    def submit(self, inputs: Sequence[EncoderInput], *, max_wait_s: float | None = None) -> Future[Rows]:
        """Encode all inputs: rows `[len(inputs), num_outputs]` in their order. Cancelling the future ends the work.

        Raises `RequestError` for inputs that can never be encoded, `OverloadedError` when the queue is full,
        `WaitTooLongError` when the first of them would wait longer than `max_wait_s` and `EngineClosedError` after
        `close`. The future raises `EngineError` when the encoder fails on one of the inputs.
        """
        self._check(inputs)
        rows = np.empty((len(inputs), self.manifest.num_outputs), np.float32)
        future: Future[Rows] = Future()
        with self._changed:
            if self._closed_reason is not None:
                raise EngineClosedError(self._closed_reason)
            if self._num_waiting + len(inputs) > self.limits.max_waiting:
                raise OverloadedError(
                    f"{self._num_waiting} inputs are waiting, and the limit is {self.limits.max_waiting}",
                    retry_after_s=self._seconds_for(self._num_waiting + len(inputs) - self.limits.max_waiting),
                    limit=("requests", self.limits.max_waiting),
                )
            if max_wait_s is not None and self._wait_s() > max_wait_s:
                raise WaitTooLongError(
                    f"these inputs would wait about {self._wait_s():.1f} s for their turn"
                    f" and may wait {max(max_wait_s, 0):.1f} s",
                    retry_after_s=self._wait_s() - max_wait_s,
                )
            self._last_number += 1
            number = self._last_number
            self._requests[number] = _Request(future, rows, len(inputs))
            self._num_waiting += len(inputs)
            self._inbox.append((number, inputs))
            self._changed.notify()
        future.add_done_callback(lambda done: self._cancel(number) if done.cancelled() else None)
        return future

    def close(self, *, drain_s: float = 0.0) -> None:
        """Accept nothing more, give what waits up to `drain_s` seconds, fail the rest, and stop the thread."""
        with self._changed:
            if self._closed_reason is None:
                self._closed_reason = "the encoder is shutting down"
            self._drain_until = monotonic() + drain_s
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            wait([self.ended], drain_s + _JOIN_S)
            if self.ended.done() and not self._is_hung:
                self._thread.join(_JOIN_S)

    def _check(self, inputs: Sequence[EncoderInput]) -> None:
        if not inputs:
            raise RequestError("there is nothing to encode", parameter="input")
        if len(inputs) > self.limits.max_waiting:
            raise RequestError(
                f"{len(inputs)} inputs in one request, at most {self.limits.max_waiting} are accepted",
                parameter="input",
            )
        for place, one in enumerate(inputs):
            if not 0 < len(one) <= self.max_length:
                raise RequestError(
                    f"input {place} has {len(one)} tokens, this model takes 1 to {self.max_length}", parameter="input"
                )
            if not 0 <= min(one.ids) <= max(one.ids) < self.manifest.vocab_size:
                raise RequestError(
                    f"input {place} has a token id outside 0 to {self.manifest.vocab_size - 1}", parameter="input"
                )

    def _seconds_for(self, num_inputs: int) -> float:
        counts = self._counts
        return max(0.1, num_inputs * counts.seconds / counts.num_inputs) if counts.num_inputs else 1.0

    def _wait_s(self) -> float:
        """Until the next request has its first turn: each of those that wait has one before it."""
        counts = self._counts
        if not counts.num_batches:
            return 0.0
        turns_s = len(self._requests) * counts.seconds / counts.num_batches
        return min(turns_s, self._num_waiting * counts.seconds / max(counts.num_inputs, 1))

    def _cancel(self, number: int) -> None:
        with self._changed:
            self._inbox.append(number)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                batch = self._queue.take()
                if batch:
                    self._encode(batch)
            if not self._is_hung:
                self._fail_all("the encoder is shutting down")
        except BaseException as error:  # a defect here: nobody may wait for it forever
            structlog.get_logger("ortserve.encoder").exception("the encoder's thread has died")
            self._has_failed = True
            self._fail_all(f"the encoder has failed ({type(error).__name__})")
        self._watchdog.close()
        with self._changed:
            del self._encoder
            if self._is_hung:  # said already; the run has ended after all, and its memory is free
                return
            if self._has_failed:
                self.ended.set_exception(EngineClosedError(self._closed_reason or ""))
            else:
                self.ended.set_result(None)

    def _hang(self, seconds: float) -> None:
        """Called by the watchdog, on its thread: the encoder's own will not tell anybody any more."""
        reason = f"a run of the encoder has not ended for {seconds:.0f} s"
        with self._changed:
            if self.ended.done():
                return
            self._is_hung = self._has_failed = True
            num_requests = len(self._requests)
        structlog.get_logger("ortserve.encoder").error(
            "the encoder hangs", model=self.manifest.name, reason=reason, requests=num_requests,
            remedy="its process has to be restarted",
        )  # fmt: skip
        self._fail_all(reason)
        self.ended.set_exception(EngineHungError(reason))

    def _wait_for_work(self) -> bool:
        """Take in what has arrived; False when the driver is closed and drained, or was given up."""
        with self._changed:
            while True:
                if self._is_hung:
                    return False
                while self._inbox:
                    self._take_in(self._inbox.popleft())
                if self._drain_until is not None and (monotonic() >= self._drain_until or not self._queue):
                    return False
                if self._queue:
                    return True
                self._changed.wait()

    def _take_in(self, command: tuple[int, Sequence[EncoderInput]] | int) -> None:
        if isinstance(command, int):
            self._queue.remove(command)
            self._forget(command)
        elif command[0] in self._requests:
            self._queue.add(*command)

    def _encode(self, batch: Sequence[QueuedInput]) -> None:
        try:
            self._store(batch, self._timed(batch))
        except Exception as error:
            self._counts.num_failed_batches += 1
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            for queued in batch:
                self._encode([queued])

    def _timed(self, batch: Sequence[QueuedInput]) -> Rows:
        counts = self._counts
        self._watchdog.begin()  # before its turn: whoever has that may be what does not end
        try:
            with self._turn:
                began = monotonic()
                rows = self._encoder.encode([queued.input for queued in batch])
                counts.seconds += monotonic() - began
        finally:
            self._watchdog.end()
        if not np.isfinite(rows).all():
            raise EngineError("the encoder gave numbers that are not finite")
        num_tokens = sum(len(queued.input) for queued in batch)
        counts.num_batches += 1
        counts.num_inputs += len(batch)
        counts.num_tokens += num_tokens
        counts.num_padded += len(batch) * max(len(queued.input) for queued in batch) - num_tokens
        return rows

    def _store(self, batch: Sequence[QueuedInput], rows: Rows) -> None:
        """Hand rows to their requests, and finished requests to their callers."""
        finished: list[_Request] = []
        with self._changed:
            for queued, row in zip(batch, rows, strict=True):
                request = self._requests.get(queued.request)
                if request is None:  # cancelled or failed meanwhile
                    continue
                request.rows[queued.place] = row
                request.num_missing -= 1
                if request.num_missing == 0:
                    self._forget(queued.request)
                    finished.append(request)
        for request in finished:
            with suppress(InvalidStateError):  # cancelled at this moment
                request.future.set_result(request.rows)

    def _fail(self, queued: QueuedInput, error: Exception) -> None:
        """End the one request that carries a failing input."""
        self._queue.remove(queued.request)
        with self._changed:
            request = self._forget(queued.request)
        if request is not None:
            failure = EngineError(f"input {queued.place} could not be encoded ({type(error).__name__}: {error})")
            with suppress(InvalidStateError):
                request.future.set_exception(failure)

    def _forget(self, number: int) -> _Request | None:
        request = self._requests.pop(number, None)
        if request is not None:
            self._num_waiting -= len(request.rows)
        return request

    def _fail_all(self, reason: str) -> None:
        with self._changed:
            self._closed_reason = reason
            left = [self._forget(number) for number in list(self._requests)]
        for request in left:
            if request is not None:
                with suppress(InvalidStateError):
                    request.future.set_exception(EngineClosedError(reason))
