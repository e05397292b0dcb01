"""Request bodies to validated requests, replies to JSON. Knows no endpoint."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.errors import ApiError, Problem, bad_request
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.request_fields.rules import Verdict
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.fields import Fields, parse_object
from ortserve.gateway.served.service import ModelService

INLINE_BYTES = 8 * 1024  # reading that much stays near 1 ms, if it is the shortest messages

Result = TypeVar("Result")


async def read_request(request: Request, table: FieldTable, read: Callable[[Fields], Result], pool: WorkPool) -> Result:
    """Parse and validate; in the worker pool when the body is large. What `table` says has no effect is noted.

    Raises `ApiError`: 400 for a body that is wrong or has another type than JSON, or, where that was asked for, fields
    that the table does not know; 403 for a model that the caller may not use; 415 for a coding.
    """
    parse = _parsing(request, table)
    return await _run(request, lambda: read(parse()), pool)


async def read_addressed(
    request: Request, table: FieldTable, read: Callable[[Fields, ModelService], Result], fleet: Fleet, pool: WorkPool
) -> tuple[ModelService, Result]:
    """The model that a body names (the first that generates, where it names none), and what it asks of it.

    Raises as `read_request` does, and as `Fleet.generator`.
    """
    fields = await _run(request, _parsing(request, table), pool)
    named = fields.get("model")
    service = await fleet.generator(named if isinstance(named, str) else None, exchange_of(request.scope))
    return service, await _run(request, lambda: read(fields, service), pool)


async def asked_model(request: Request, fleet: Fleet) -> ModelService:
    """The model of `?model=NAME`, or the first that generates. Raises `ApiError` as `read_addressed` does."""
    exchange = exchange_of(request.scope)
    named = request.query_params.get("model", exchange.directory.default("generate"))
    if named is not None:
        exchange.check_model(named)
    return await fleet.generator(named, exchange)


async def _run(request: Request, work: Callable[[], Result], pool: WorkPool) -> Result:
    return work() if len(exchange_of(request.scope).body) <= INLINE_BYTES else await pool.run(work)


def _parsing(request: Request, table: FieldTable) -> Callable[[], Fields]:
    """Work that parses and checks what no model is needed for."""
    exchange = exchange_of(request.scope)
    _check_headers(request.headers)
    body = exchange.body

    def work() -> Fields:
        fields = parse_object(body)
        if exchange.is_strict:
            _refuse_repetition(body)
        named, verdict = fields.get("model"), table.verdict_of("model")
        if named is None and verdict is Verdict.HONOURED:
            named = exchange.directory.default("generate")  # who names none means the first
        if isinstance(named, str) and verdict is not None:
            exchange.check_model(named)
        exchange.unheeded = unheeded = table.unheeded(fields.data)
        if exchange.is_strict and unheeded.unknown:
            name = unheeded.unknown[0]
            raise bad_request(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
        return fields

    return work


def reply_id(prefix: str) -> str:
    """A unique id such as chatcmpl-... ."""
    return f"{prefix}-{secrets.token_hex(14)}"


def now() -> int:
    """Seconds since the epoch, whole: strict clients refuse a fraction."""
    return int(time.time())


def json_response(value: msgspec.Struct) -> Response:
    """A 200 with the reply."""
    return Response(msgspec.json.encode(value), media_type="application/json")


def _check_headers(headers: Headers) -> None:
    """JSON by name, or without a name; never compressed."""
    given = headers.get("content-type", "")
    type_, _, parameters = given.partition(";")
    type_ = type_.strip().lower()
    if type_ not in ("", "application/json") and not (type_.startswith("application/") and type_.endswith("+json")):
        message = f"Unsupported content type '{given[:100]}'. The API expects 'Content-Type: application/json'."
        raise bad_request(message, code="unsupported_content_type")
    charset = parameters.lower().partition("charset=")[2].split(";")[0].strip().strip('"')
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        message = f"Unsupported charset '{charset[:100]}'. JSON is sent in UTF-8."
        raise bad_request(message, code="unsupported_content_type")
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        message = f"Unsupported content encoding '{coding[:100]}'. Send the body uncompressed."
        raise ApiError(Problem(415, message, code="unsupported_content_encoding", headers={"accept-encoding": ""}))


def _refuse_repetition(body: bytes) -> None:
    def check(pairs: list[tuple[str, object]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                message = f"Invalid request body: '{name[:100]}' comes twice in one object."
                raise bad_request(message, param=name[:100], code="duplicate_parameter")
            seen.add(name)

    json.loads(body, object_pairs_hook=check)
