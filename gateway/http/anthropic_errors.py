"""Failures in Anthropic's envelope, for the paths that speak it. Knows no cause: it words what OpenAI's routes word.

Types by status as in Anthropic's reference ("Errors"); statuses stay what they are, so that proxies and load balancers
read the same ones whatever the client speaks.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ortserve.gateway.errors import Problem

PATH = "/v1/messages"
TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def speaks_anthropic(path: str) -> bool:
    """Whether a canonical path belongs to the Messages API."""
    return path == PATH or path.startswith(f"{PATH}/")


def error_type(status: int) -> str:
    """Anthropic's word for a status."""
    return TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def anthropic_body(problem: Problem, request_id: str | None = None) -> bytes:
    """The envelope, UTF-8 JSON. It has no place for the field's name, so the message has it."""
    param = problem.param
    message = problem.message if param is None or param in problem.message else f"{param}: {problem.message}"
    value: dict[str, object] = {
        "type": "error",
        "error": {"type": error_type(problem.status), "message": message},
    }
    if request_id is not None:
        value["request_id"] = request_id
    return msgspec.json.encode(value)
