"""When a client stops waiting, as its headers say. Knows no route and no clock.

OpenAI's and Anthropic's clients tell how long they wait for the next byte. That bounds a reply which comes as a whole;
a stream is kept alive, so that for one only a bound that is asked for holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.errors import ApiError, Problem, bad_request

ASKED = ("x-ortserve-timeout", "x-request-timeout")  # seconds for the reply, streamed or not
OF_CLIENTS = ("x-stainless-timeout", "x-stainless-read-timeout")  # seconds, of libraries that Stainless generates


@dataclass(frozen=True, slots=True)
class Deadline:
    """Of the end of a reply, in seconds of the clock of `started`; infinite: none."""

    started: float = 0.0
    whole: float = math.inf
    streamed: float = math.inf

    def of(self, *, is_streamed: bool) -> float | None:
        """What holds for this reply; None: nothing."""
        end = self.streamed if is_streamed else self.whole
        return None if math.isinf(end) else end

    def problem(self, *, is_streamed: bool) -> Problem:
        """What a client is told after it."""
        seconds = (self.streamed if is_streamed else self.whole) - self.started
        message = f"The reply was not complete within the {seconds:g} s that the request's timeout allows."
        # The client has asked for exactly this: its library must not ask again by itself.
        headers = {"x-should-retry": "false"}
        return Problem(504, message, type="server_error", code="deadline_exceeded", headers=headers)


NEVER = Deadline()


def read_deadline(headers: Mapping[str, str], started: float) -> Deadline:
    """Raises `ApiError` (400) for a bound that was asked for and is no number of seconds above 0."""
    asked = math.inf
    for name in ASKED:
        value = headers.get(name)
        if value is not None:
            asked = min(asked, _asked_seconds(name, value))
    told = min((_told_seconds(headers[name]) for name in OF_CLIENTS if name in headers), default=math.inf)
    return Deadline(started, started + min(asked, told), started + asked)


def _asked_seconds(name: str, value: str) -> float:
    seconds = _number(value)
    if seconds is None:
        raise _wrong(name, value)
    return seconds


def _told_seconds(value: str) -> float:
    """What a library adds by itself is not the caller's mistake."""
    return _number(value) or math.inf


def _number(value: str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


def _wrong(name: str, value: str) -> ApiError:
    message = f"Invalid header '{name}': expected a number of seconds above 0, but got '{value[:100]}'."
    return bad_request(message, param=name, code="invalid_value")
