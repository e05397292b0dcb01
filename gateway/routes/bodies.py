"""Request bodies to validated requests, replies to JSON. Knows no endpoint."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec
from starlette.responses import Response

from ortserve.gateway.errors import bad_request
from ortserve.gateway.logs import log
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.schema.fields import Fields, kind

INLINE_BYTES = 64 * 1024  # parsing that much stays below 1 ms

Result = TypeVar("Result")


def parse_object(body: bytes) -> Fields:
    """The body as one JSON object; raises `ApiError` (400) otherwise."""
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's errors and invalid UTF-8 are ValueErrors
        reason = str(error) or type(error).__name__
        message = (
            "We could not parse the JSON body of your request. The API expects a JSON payload sent with "
            f"'Content-Type: application/json', but what was sent was not valid JSON: {reason}."
        )
        raise bad_request(message) from None
    if not isinstance(value, dict):
        message = f"Invalid request body: expected a JSON object, but got {kind(value)} instead."
        raise bad_request(message, code="invalid_type")
    return Fields(value)


async def read_request(body: bytes, read: Callable[[Fields], Result], known: Collection[str], pool: WorkPool) -> Result:
    """Parse and validate; in the worker pool when the body is large."""

    def work() -> tuple[Result, tuple[str, ...]]:
        fields = parse_object(body)
        return read(fields), fields.unknown(known)

    result, unknown = work() if len(body) <= INLINE_BYTES else await pool.run(work)
    if unknown:
        log().debug("unknown_fields", fields=unknown)
    return result


def reply_id(prefix: str) -> str:
    """A unique id such as chatcmpl-... ."""
    return f"{prefix}-{secrets.token_hex(14)}"


def now() -> int:
    """Seconds since the epoch, whole: strict clients refuse a fraction."""
    return int(time.time())


def json_response(value: msgspec.Struct) -> Response:
    """A 200 with the reply."""
    return Response(msgspec.json.encode(value), media_type="application/json")
