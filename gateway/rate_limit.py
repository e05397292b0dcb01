"""How much of one limit is left, as OpenAI's and Anthropic's headers tell it. Knows no key and no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Of "requests" or "tokens": the bound, what is left of it, and seconds until all of it is."""

    word: str
    limit: int
    remaining: int
    reset_s: float

    def headers(self) -> Mapping[str, str]:
        """As OpenAI names and writes them."""
        prefix, word = "x-ratelimit", self.word
        return {
            f"{prefix}-limit-{word}": str(self.limit),
            f"{prefix}-remaining-{word}": str(self.remaining),
            f"{prefix}-reset-{word}": duration(self.reset_s),
        }

    def anthropic_headers(self, now: datetime) -> Mapping[str, str]:
        """As Anthropic does; resets are points in time, RFC 3339."""
        prefix = f"anthropic-ratelimit-{self.word}"
        reset = now.astimezone(UTC) + timedelta(seconds=math.ceil(self.reset_s))
        return {
            f"{prefix}-limit": str(self.limit),
            f"{prefix}-remaining": str(self.remaining),
            f"{prefix}-reset": reset.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


def rate_headers(limits: Iterable[RateLimit], *, is_anthropic: bool) -> dict[str, str]:
    """All of them, in the words of one of the two."""
    now = datetime.now(UTC)
    found: dict[str, str] = {}
    for limit in limits:
        found.update(limit.anthropic_headers(now) if is_anthropic else limit.headers())
    return found


def duration(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1.5s, 120ms."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{f'{minutes:.0f}m' if minutes else ''}{round(rest, 3):g}s"
