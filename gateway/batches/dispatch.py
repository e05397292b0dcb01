"""One API call from within the server: the same route, without a socket. Knows no endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.grant import Grant
from ortserve.gateway.directory import Directory
from ortserve.gateway.errors import bad_request, unauthorized
from ortserve.gateway.exchange import SCOPE_KEY, Exchange
from ortserve.gateway.http.edge import problem_of
from ortserve.gateway.logs import log

Handler = Callable[[Request], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client would have been answered."""

    status: int
    body: bytes
    request_id: str
    retry_after_s: float | None = None
    is_final: bool = False  # asking again would change nothing


class _Flags(msgspec.Struct):
    stream: bool | None = None
    background: bool | None = None


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """The routes by their paths."""

    handlers: Mapping[str, Handler]
    count: Callable[[Exchange, str, float], None]  # into the metrics
    access: Access
    directory: Callable[[], Directory]  # of the models of now
    settle: Callable[[Exchange], None]  # into the ledger
    check_budget: Callable[[Grant], None]  # raises `ApiError` when it is used up

    async def call(self, path: str, body: bytes, *, tenant: bytes, priority: int) -> Answer:
        """Run one request to its end, where the tenant's keys of now allow it. Cancelling cancels what it generates."""
        grant = self.access.ring.of_tenant(tenant)
        exchange = Exchange(grant=grant or Grant("", b"", tenant), priority=priority, body=body, path=path)
        exchange.directory = self.directory()
        if grant is None:
            problem = unauthorized(given=True)
            return Answer(problem.status, problem.body(), exchange.request_id)
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"content-type", b"application/json")], SCOPE_KEY: exchange,
        }  # fmt: skip
        try:
            answer = await self._answer(path, Request(scope, _nothing_more), exchange)
        finally:
            exchange.end()
        exchange.status = answer.status
        self.settle(exchange)
        self.count(exchange, path, time.monotonic() - exchange.started)
        return answer

    async def _answer(self, path: str, request: Request, exchange: Exchange) -> Answer:
        try:
            self.check_budget(exchange.grant)
            _refuse_what_does_not_end(exchange.body)
            response = await self.handlers[path](request)
            assert isinstance(response, Response)
            return Answer(response.status_code, bytes(response.body), exchange.request_id)
        except Exception as error:
            problem = problem_of(error)
            if problem.status >= 500:
                log().warning("batch_request_failed", path=path, error=str(error))
            wait_ms = problem.headers.get("retry-after-ms")
            retry_after_s = None if wait_ms is None else int(wait_ms) / 1000
            is_final = problem.headers.get("x-should-retry") == "false"
            return Answer(problem.status, problem.body(), exchange.request_id, retry_after_s, is_final)


async def _nothing_more() -> Message:
    """A client that has sent its body and waits."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody answers this")


def _refuse_what_does_not_end(body: bytes) -> None:
    try:
        flags = msgspec.json.decode(body, type=_Flags)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return  # the route says what is wrong with it
    for name in ("stream", "background"):
        if getattr(flags, name):
            raise bad_request(f"Invalid '{name}': it cannot be true in a batch.", param=name, code="invalid_value")
