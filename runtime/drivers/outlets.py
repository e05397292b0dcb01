"""Who waits for what of one engine: requests that have not ended, where their deltas go, and the queue that they make.

Both kinds of drivers keep it: with the engine's thread here, or in another process. Knows no engine and no process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import structlog

from ortserve.runtime.drivers.engine_driver import Outlet
from ortserve.runtime.errors import RequestError
from ortserve.runtime.request import Delta, FinishReason, Request
from ortserve.runtime.scheduling.backlog import Backlog, Progress


class Outlets:
    """Guarded by the driver's `lock`: call everything but `hand_out` with it held."""

    def __init__(self, lock: AbstractContextManager[object], backlog: Backlog, cancel: Callable[[str], None]) -> None:
        """`cancel` ends a request whose outlet has failed; it is called without the lock."""
        self.backlog = backlog
        self.num_silent_tokens = 0  # prompt tokens of requests that have said nothing yet
        self._lock = lock
        self._cancel = cancel
        self._outlets: dict[str, Outlet] = {}
        self._silent: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._outlets)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._outlets

    def add(self, request: Request, outlet: Outlet, now_s: float) -> None:
        """Take a request in. Raises `RequestError` for an id in use, and `OverloadedError` as `Backlog.add` does."""
        if request.id in self._outlets:
            raise id_in_use(request)
        self.backlog.add(request, now_s)
        self._outlets[request.id] = outlet
        self._silent[request.id] = len(request.prompt)
        self.num_silent_tokens += len(request.prompt)

    def losses(self, reason: str) -> list[Delta]:
        """The last deltas of all requests of an engine that is gone."""
        return [Delta(name, (), finish=FinishReason.ERROR, error=reason, is_lost=True) for name in self._outlets]

    def hand_out(self, deltas: Sequence[Delta], progress: Progress | None = None) -> None:
        """Take over what a step has brought, and tell those who wait: each outlet once.

        Deltas of requests that have been told their end already come to nothing.
        """
        by_outlet: dict[int, tuple[Outlet, list[Delta]]] = {}
        last: Outlet | None = None  # most often there is one for all
        own: list[Delta] = []
        with self._lock:
            if progress is not None:
                self.backlog.advance(progress)
            for delta in deltas:
                outlet = self._outlets.get(delta.request_id)
                if outlet is None:
                    continue
                if outlet is not last:
                    last, own = by_outlet.setdefault(id(outlet), (outlet, []))
                own.append(delta)
                if self._silent:
                    self.num_silent_tokens -= self._silent.pop(delta.request_id, 0)
                if delta.finish is not None:
                    del self._outlets[delta.request_id]
                    self.backlog.remove(delta.request_id, delta.usage)
        for outlet, own in by_outlet.values():
            try:
                outlet.deliver(own)
            except Exception:  # a defect of one reader must not take the others' engine away
                structlog.get_logger("ortserve.driver").exception("an outlet failed; its requests are cancelled")
                for delta in own:
                    self._cancel(delta.request_id)


def id_in_use(request: Request) -> RequestError:
    """The refusal of a second request of one id."""
    return RequestError(f"request id {request.id!r} is in use: give each running request its own", parameter="id")
