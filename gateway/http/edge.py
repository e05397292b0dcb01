"""The outermost ASGI layers: request id, body and access line, then key, path and failures. Know no field.

Every reply passes here, so every reply has an `x-request-id`, every failure the envelope, and every body a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.grant import Grant, anonymous
from ortserve.gateway.access.grant import Scope as KeyScope
from ortserve.gateway.access.quota import Quotas
from ortserve.gateway.access.tenancy import given_key
from ortserve.gateway.deadline import read_deadline
from ortserve.gateway.directory import Directory
from ortserve.gateway.errors import (
    ApiError,
    Problem,
    forbidden,
    from_runtime,
    internal_error,
    invalid_url,
    unauthorized,
)
from ortserve.gateway.exchange import SCOPE_KEY, Exchange, exchange_of
from ortserve.gateway.http.anthropic_errors import anthropic_body, speaks_anthropic
from ortserve.gateway.http.arrival import SlowBodyError, in_time, read_body, too_large
from ortserve.gateway.http.websockets import refuse_websocket
from ortserve.gateway.logs import log
from ortserve.gateway.options.edge import MAX_BODY_BYTES
from ortserve.gateway.rate_limit import rate_headers
from ortserve.gateway.telemetry.metrics import Metrics
from ortserve.gateway.telemetry.tracing import trace_of
from ortserve.runtime.errors import OrtserveError

MAX_LOGGED_BYTES = 64 * 1024  # of a body, where bodies are logged at all
TRACE_HEADERS = ("traceparent", "tracestate")
UNNAMED = "none"  # an error without a code
IGNORED_HEADER = b"x-ortserve-ignored"
OPEN_PATHS = ("/", "/health", "/health/live", "/health/ready")  # load balancers have no key
ADMIN_PATH = "/admin"
METRICS_PATH = "/metrics"
# First words of paths that clients send whose base URL lacks /v1.
ALIASED = (
    "batches", "chat", "completions", "conversations", "detokenize", "embeddings", "files", "messages", "models",
    "rerank", "responses", "score", "tokenize", "tokenizer_info",
)  # fmt: skip
UPLOAD_PATH = "/v1/files"  # its bodies are read as they come, by the route
# What counts against a key's limits: all that makes a model work.
METERED_PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses",
    "/v1/responses/input_tokens", "/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/tokenize", "/v1/detokenize",
)  # fmt: skip
METHODS_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


class Edge:
    """Gives every exchange its record, its body, its access line and its place in the metrics.

    The body is read here whatever becomes of the request: Hypercorn's reader waits, for ever and deaf to disconnects,
    once ten pieces lie in a queue that nobody empties.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_s: float = 30.0,
        strict_parameters: bool = False,
        log_prompts: bool = False,
    ) -> None:
        self._logs_prompts = log_prompts
        self._app = app
        self._metrics = metrics
        self._body_s = body_s
        self._max_body_bytes = max_body_bytes
        self._is_strict = strict_parameters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Part of ASGI."""
        if scope["type"] == "websocket":
            await refuse_websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = self._exchange(scope)
        exchange.send_piece = send

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = _told(exchange, message["headers"])
            await send(message)

        method, path, client = scope["method"], scope["path"], scope.get("client")
        with structlog.contextvars.bound_contextvars(request_id=exchange.request_id):
            try:
                if method == "POST" and exchange.path == UPLOAD_PATH:
                    await self._pass_through(scope, in_time(receive, self._body_s), send_with_id)
                    return
                limit = self._max_body_bytes if method in METHODS_WITH_BODY else 0
                body = await read_body(receive, limit, self._body_s)
                if body is None:
                    exchange.outcome = "disconnected"
                    return
                exchange.body = body
                if self._logs_prompts and exchange.path in METERED_PATHS:
                    log().info("prompt", path=path, body=body[:MAX_LOGGED_BYTES].decode("utf-8", "replace"))
                await self._app(scope, receive, send_with_id)
            except SlowBodyError as error:
                exchange.outcome = "stalled"
                await problem_response(error.problem, scope)(scope, receive, send_with_id)
            finally:
                self._metrics.count(exchange, exchange.path, time.monotonic() - exchange.started)
                address = None if client is None else client[0]
                log().info("request", method=method, path=path, client=address, **exchange.log_fields())

    def _exchange(self, scope: Scope) -> Exchange:
        """The record of a request, with what its headers say beside its body; in the scope for all layers."""
        exchange = Exchange(is_strict=self._is_strict, path=canonical_path(scope["path"]))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        exchange.headers = headers
        given = headers.get("x-request-id", "")
        if 0 < len(given) <= 128 and given.isascii() and given.isprintable():
            exchange.request_id = given
        exchange.trace_headers = {name: headers[name] for name in TRACE_HEADERS if name in headers}
        exchange.trace_id = trace_of(headers.get("traceparent", ""))
        scope[SCOPE_KEY] = exchange
        return exchange

    async def _pass_through(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the route read the body. The rest is dropped before the reply: else the server would break off both."""
        is_read = False

        async def receive_counted() -> Message:
            nonlocal is_read
            try:
                message = await receive()
            except SlowBodyError:
                is_read = True  # nothing is waited for any more
                raise
            is_read = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def send_after(message: Message) -> None:
            with contextlib.suppress(SlowBodyError):  # the reply is there: what is late is not waited for
                while not is_read:
                    await receive_counted()
            await send(message)

        await self._app(scope, receive_counted, send_after)


class Gate:
    """Checks the key and the body's size, tolerates spellings of paths, and turns failures into the envelope.

    Paths of the administrator need a key of their own; without one they do not exist. `directory` tells the models of
    now: a request goes by what it is told when it comes.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        directory: Callable[[], Directory],
        settle: Callable[[Exchange], None],
        check_budget: Callable[[Grant], None],
        check_room: Callable[[Exchange], None],
        max_body_bytes: int = MAX_BODY_BYTES,
        admin_metrics: bool = False,
    ) -> None:
        self._check_budget = check_budget
        self._check_room = check_room
        self._hides_metrics = admin_metrics
        self._app = app
        self._access = access
        self._directory = directory
        self._max_body_bytes = max_body_bytes
        self._settle = settle
        self._quotas = Quotas()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Part of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        scope["path"] = canonical_path(scope["path"])
        try:
            refusal = self._refusal(scope)
            if refusal is None and len(exchange.body) > self._max_body_bytes:
                refusal = too_large(self._max_body_bytes)
            if refusal is not None:
                await problem_response(refusal, scope)(scope, receive, send)
            elif scope["method"] == "OPTIONS":
                await Response(status_code=204)(scope, receive, send)
            else:
                exchange.deadline = read_deadline(exchange.headers, exchange.started)
                self._admit(scope, exchange)
                async with asyncio.timeout_at(exchange.deadline.of(is_streamed=False)) as exchange.bound:
                    await self._app(scope, receive, send)
        except Exception as error:
            if exchange.bound is not None and exchange.bound.expired():
                exchange.outcome = "late"
                if exchange.status == 0:
                    problem = exchange.deadline.problem(is_streamed=False)
                    await problem_response(problem, scope)(scope, receive, send)
                return
            if not isinstance(error, ApiError | OrtserveError):
                log().exception("request_failed")
            exchange.outcome = "failed"
            if exchange.status == 0:
                await problem_response(problem_of(error), scope)(scope, receive, send)
        finally:
            if not exchange.runs_on:
                exchange.end()

    def _admit(self, scope: Scope, exchange: Exchange) -> None:
        """Charge the key for what it asks, and see whether it can be taken in. Raises `ApiError` (429, 403)."""
        if scope["method"] != "POST" or scope["path"] not in METERED_PATHS:
            return
        exchange.endings.append(lambda: self._settle(exchange))
        self._check_budget(exchange.grant)
        now_s = time.monotonic()
        exchange.quota = quota = self._quotas.of(exchange.grant, now_s)
        if quota is not None:
            visit = quota.admit(len(exchange.body), now_s)
            exchange.endings.append(lambda: visit.end(exchange.num_tokens, time.monotonic()))
        self._check_room(exchange)

    def _refusal(self, scope: Scope) -> Problem | None:
        """Note who asks; what they are told when they may not."""
        exchange = exchange_of(scope)
        key, ring, path = given_key(exchange.headers), self._access.ring, scope["path"]
        exchange.directory = self._directory()
        is_admin = path == ADMIN_PATH or path.startswith(f"{ADMIN_PATH}/")
        needs_admin = is_admin or (self._hides_metrics and path == METRICS_PATH)
        grant = ring.find(key) if needs_admin else ring.caller(key)
        exchange.grant = grant or anonymous(key)
        exchange.is_known = grant is not None
        exchange.priority = exchange.grant.limits.priority
        if is_admin and not ring.has_admin:
            return invalid_url(scope["method"], scope["raw_path"].decode("latin-1"))
        if not is_admin and (path in OPEN_PATHS or scope["method"] == "OPTIONS"):
            return None
        if grant is None:
            return unauthorized(given=bool(key))
        if path == METRICS_PATH and not needs_admin:
            return None
        wanted: KeyScope = "admin" if needs_admin else "inference"
        return None if wanted in grant.scopes else forbidden(wanted)


def canonical_path(path: str) -> str:
    """One spelling per route: no empty segments, no trailing slash, one /v1, and /v1 where clients leave it out.

    A whole URL in the request line, which servers must take (RFC 9112, 3.2.2), is its path.
    """
    if path.lower().startswith(("http://", "https://")):
        path = path.partition("://")[2].partition("/")[2]
    parts = [part for part in path.split("/") if part]
    while parts[:2] == ["v1", "v1"]:
        del parts[0]
    if parts and parts[0] in ALIASED:
        parts.insert(0, "v1")
    return "/" + "/".join(parts)


def problem_of(error: Exception) -> Problem:
    """What the client is told of any exception."""
    if isinstance(error, ApiError):
        return error.problem
    if isinstance(error, OrtserveError):
        return from_runtime(error, prompt_param="prompt")
    return internal_error()


def problem_response(problem: Problem, scope: Scope) -> Response:
    """The envelope as a reply, Anthropic's where the path is."""
    exchange = exchange_of(scope)
    exchange.error_code = problem.code or UNNAMED
    is_anthropic = speaks_anthropic(scope["path"])
    body = anthropic_body(problem, exchange.request_id) if is_anthropic else problem.body()
    headers = {**problem.headers, **rate_headers(problem.limits, is_anthropic=is_anthropic)}
    return Response(body, problem.status, headers, "application/json")


def _told(exchange: Exchange, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A reply's headers with what every reply has: its id, the limits of its key, fields without effect."""
    request_id = exchange.request_id.encode()
    own = {b"x-request-id": request_id}
    is_anthropic = speaks_anthropic(exchange.path)
    if is_anthropic:
        own[b"request-id"] = request_id
    if exchange.quota is not None:  # which goes before the queue's limits
        told = rate_headers(exchange.quota.limits(time.monotonic()), is_anthropic=is_anthropic)
        own |= {name.encode(): value.encode() for name, value in told.items()}
    ignored = exchange.unheeded.header()
    if ignored:
        own[IGNORED_HEADER] = ignored.encode()
    return [*(pair for pair in headers if pair[0] not in own), *own.items()]
