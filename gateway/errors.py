"""Failures as OpenAI's error envelope: status, message, type, param, code. Knows no socket and renders no traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from ortserve.gateway.rate_limit import RateLimit
from ortserve.runtime.errors import (
    ContextLengthError,
    EngineClosedError,
    OrtserveError,
    OverloadedError,
    RequestError,
    WaitTooLongError,
)

MAX_MESSAGE = 2000  # characters
MAX_PARAM = 200
MAX_RETRY_AFTER_S = 60.0  # the SDKs ignore or refuse longer waits


@dataclass(frozen=True, slots=True)
class Problem:
    """What the client is told. `param` is the path of the offending field, `code` a stable word."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[RateLimit, ...] = ()  # what it has exceeded

    def __post_init__(self) -> None:
        """Cut what a client has said at length: it is named, not repeated."""
        object.__setattr__(self, "message", _shortened(self.message, MAX_MESSAGE))
        if self.param is not None:
            object.__setattr__(self, "param", _shortened(self.param, MAX_PARAM))

    def body(self) -> bytes:
        """The envelope with all four keys, UTF-8 JSON."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


class ApiError(Exception):
    """Ends one API call with its `problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400: the request must be changed before it is sent again."""
    return ApiError(Problem(400, message, param=param, code=code))


def missing_parameter(param: str) -> ApiError:
    """A 400: a required field is absent."""
    return bad_request(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def unsupported_parameter(param: str, reason: str) -> ApiError:
    """A 400 for a field that means something here would not honour; never silently dropped."""
    return bad_request(f"Unsupported parameter: '{param}' {reason}", param=param, code="unsupported_parameter")


def model_not_found(name: str, served: Sequence[str]) -> ApiError:
    """A 404 naming the models this server does serve."""
    known = ", ".join(f"`{one}`" for one in served)
    message = f"The model `{name}` does not exist or you do not have access to it. This server serves {known}."
    return ApiError(Problem(404, message, param="model", code="model_not_found"))


def not_found(noun: str, id: str, *, param: str | None = None) -> Problem:
    """A 404 for something that is not kept, or not for this caller."""
    return Problem(404, f"{noun} with id '{id}' not found.", param=param)


def previous_response_not_found(id: str) -> Problem:
    """A 400 for a response to go on from that is not kept, or not for this caller."""
    message = f"Previous response with id '{id}' not found."
    return Problem(400, message, param="previous_response_id", code="previous_response_not_found")


def previous_response_running(id: str) -> Problem:
    """A 400 for a response to go on from whose reply is not there yet."""
    message = f"Previous response with id '{id}' is still running: wait for its end, or cancel it."
    return Problem(400, message, param="previous_response_id", code="previous_response_running")


def invalid_url(method: str, path: str) -> Problem:
    """A 404 for a path no route answers."""
    return Problem(404, f"Invalid URL ({method} {path})")


def method_not_allowed(method: str, path: str, allowed: str) -> Problem:
    """A 405 naming what the path does accept."""
    message = f"Not allowed to {method} on {path}. Allowed methods: {allowed}."
    return Problem(405, message, code="method_not_supported", headers={"allow": allowed})


def unauthorized(*, given: bool) -> Problem:
    """A 401: no key, or a wrong one."""
    message = "You didn't provide an API key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
    if given:
        message = "Incorrect API key provided."
    return Problem(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def forbidden(scope: str) -> Problem:
    """A 403: a key that is known, for something else."""
    message = f"You have insufficient permissions for this operation. Missing scopes: {scope}."
    return Problem(403, message, code="insufficient_permissions")


def unavailable(message: str, *, retry_after_s: float = 5.0) -> Problem:
    """A 503: loading, draining, or an engine that has stopped."""
    return Problem(503, message, type="server_error", code="server_unavailable", headers=_retry_headers(retry_after_s))


def internal_error(message: str = "The server had an error while processing your request.") -> Problem:
    """A 500 without details of the implementation."""
    return Problem(500, message, type="server_error", code="internal_error")


def context_overflow(num_prompt_tokens: int, max_context: int, *, param: str, exact: bool = True) -> Problem:
    """A 400 in the wording that LiteLLM's and LangChain's overflow classes recognise.

    `exact` False: `num_prompt_tokens` is a lower bound (the prompt was refused before it was tokenized).
    """
    amount = f"{num_prompt_tokens}" if exact else f"at least {num_prompt_tokens}"
    message = (
        f"This model's maximum context length is {max_context} tokens, but the prompt is too long: "
        f"your {param} resulted in {amount} tokens. Please reduce the length of the {param}."
    )
    return Problem(400, message, param=param, code="context_length_exceeded")


def from_runtime(error: OrtserveError, *, prompt_param: str) -> Problem:
    """Map an engine's refusal or failure. `prompt_param` is the field that carried the prompt."""
    if isinstance(error, ContextLengthError):
        return context_overflow(error.num_prompt_tokens, error.max_context, param=prompt_param)
    if isinstance(error, RequestError):
        return Problem(400, f"Invalid request: {error}.", param=error.parameter, code="invalid_value")
    if isinstance(error, WaitTooLongError):
        return overloaded(f"{error}", retry_after_s=error.retry_after_s)
    if isinstance(error, OverloadedError):
        return too_many(f"{error}", retry_after_s=error.retry_after_s, limit=error.limit)
    if isinstance(error, EngineClosedError):
        return unavailable(f"The engine has stopped: {error}.")
    return internal_error(f"The engine failed while running this request: {error}.")


def too_many(reason: str, *, retry_after_s: float, limit: tuple[str, int] | None = None) -> Problem:
    """A 429: the same request may succeed later. `limit`: what is bounded ("requests", "tokens") and by how much."""
    seconds = min(max(retry_after_s, 0.1), MAX_RETRY_AFTER_S)
    message = f"Too many requests are waiting: {reason}. Please try again in {seconds:.1f}s."
    headers = _retry_headers(seconds)
    limits = () if limit is None else (RateLimit(limit[0], limit[1], 0, seconds),)
    return Problem(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers, limits=limits)


def overloaded(reason: str, *, retry_after_s: float) -> Problem:
    """A 503: there is room, and the answer would come too late."""
    seconds = min(max(retry_after_s, 0.1), MAX_RETRY_AFTER_S)
    message = f"The server is overloaded: {reason}. Please try again in {seconds:.1f}s."
    return Problem(503, message, type="server_error", code="server_overloaded", headers=_retry_headers(seconds))


def rate_limited(limit: str, amount: int, *, retry_after_s: float) -> Problem:
    """A 429 for a key's own limit, in OpenAI's words."""
    seconds = min(max(retry_after_s, 0.001), MAX_RETRY_AFTER_S)
    message = f"Rate limit reached for {limit}: limit {amount}. Please try again in {seconds:.3f}s."
    headers = _retry_headers(seconds)
    return Problem(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)


def _retry_headers(seconds: float) -> dict[str, str]:
    bounded = min(seconds, MAX_RETRY_AFTER_S)
    return {"retry-after": str(math.ceil(bounded)), "retry-after-ms": str(math.ceil(bounded * 1000))}


def _shortened(text: str, limit: int) -> str:
    """Beginning and end: the middle is where the client's own words are."""
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
