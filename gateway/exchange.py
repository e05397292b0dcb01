"""What is known about one HTTP exchange: its id, body, times and counts, for replies and the access log.

Knows no route. Never holds prompts or replies.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ortserve.gateway.access.grant import Grant, anonymous
from ortserve.gateway.access.quota import Quota
from ortserve.gateway.access.turn import Turn
from ortserve.gateway.deadline import NEVER, Deadline
from ortserve.gateway.directory import Directory
from ortserve.gateway.replies.generation import Generation, Timings
from ortserve.gateway.request_fields.table import Unheeded

if TYPE_CHECKING:
    from starlette.types import Scope, Send

SCOPE_KEY = "ortserve.exchange"
NOBODY, NO_MODELS, ALL_HEEDED = anonymous(b""), Directory(()), Unheeded()
_DICE = random.Random(secrets.randbits(256))  # noqa: S311 - ids of requests are no secrets, and system calls take time


@dataclass(slots=True)
class Exchange:
    """The one mutable record of a request, from its first byte to its access line."""

    request_id: str = field(default_factory=lambda: f"req_{_DICE.getrandbits(128):032x}")
    started: float = field(default_factory=time.monotonic)
    status: int = 0  # 0: nothing sent yet
    outcome: str = "done"  # done, disconnected, stalled, late, failed
    error_code: str | None = None  # of a reply that is an error
    deadline: Deadline = NEVER
    bound: asyncio.Timeout | None = None  # ends whatever is done for it at its deadline
    grant: Grant = NOBODY  # what the caller may
    quota: Quota | None = None  # of the caller's key, if it has limits
    endings: list[Callable[[], None]] = field(default_factory=list)  # what settles it
    runs_on: bool = False  # what it has begun outlives it, and ends it
    is_known: bool = True  # the caller has sent a key in force, or none is needed
    directory: Directory = NO_MODELS  # of the models that `grant` may name
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_output_tokens: int | None = None
    num_accepted_tokens: int = 0  # of the output, guessed by a drafter
    path: str = ""  # canonical
    model: str = ""  # the served name of what was asked
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # of the request, the first of each name
    trace_headers: Mapping[str, str] = field(default_factory=dict)  # W3C, of the span that has asked
    trace_id: str | None = None  # that all spans of the request share
    first_token_s: float | None = None  # from the request to the first token
    timings: Timings | None = None
    body: bytes = b""
    priority: int = 0  # of what it generates; larger runs first
    is_strict: bool = False  # fields that no table knows are refused
    unheeded: Unheeded = ALL_HEEDED  # fields of the body that have no effect
    send_piece: Send | None = None  # the server's own send, past the layers that only look at a reply's head

    @property
    def tenant(self) -> bytes:
        """A digest: whose cached prompts and kept things these are."""
        return self.grant.tenant

    @property
    def num_tokens(self) -> int | None:
        """Read and generated, None when nothing was."""
        return None if self.num_prompt_tokens is None else self.num_prompt_tokens + (self.num_output_tokens or 0)

    def turn(self, *, is_streamed: bool) -> Turn:
        """When what it generates runs."""
        end = self.deadline.of(is_streamed=is_streamed)
        max_wait_s = None if end is None else end - time.monotonic()
        return Turn(self.tenant, self.priority, self.grant.limits.weight, max_wait_s)

    def begin_stream(self) -> float | None:
        """From now on frames tell of its end; the deadline of these, on the monotonic clock."""
        if self.bound is not None and not self.bound.expired():
            self.bound.reschedule(None)
        return self.deadline.of(is_streamed=True)

    def end(self) -> None:
        """Settle it, once."""
        endings, self.endings = self.endings, []
        for ending in endings:
            ending()

    def check_model(self, name: str) -> None:
        """Note which model is asked. Raise `ApiError` (403) for a served one that the caller may not use."""
        self.model = next((model.names[0] for model in self.directory.models if name in model.names), "")
        self.grant.check_model(name, self.directory)

    def note(self, generation: Generation) -> None:
        """Take over the counts of what was generated."""
        usage = generation.usage()
        self.num_prompt_tokens = usage.num_prompt_tokens
        self.num_cached_tokens = usage.num_cached_tokens
        self.num_output_tokens = usage.num_output_tokens
        self.num_accepted_tokens = usage.num_accepted_tokens
        self.timings = generation.timings()
        if generation.first_token_at is not None:
            self.first_token_s = generation.first_token_at - self.started

    def note_prompt(self, num_tokens: int) -> None:
        """Take over the count of what was read where nothing is generated."""
        self.num_prompt_tokens = num_tokens
        self.num_cached_tokens = self.num_output_tokens = 0

    def log_fields(self) -> Mapping[str, object]:
        """Fields of the access line besides method and path."""
        fields: dict[str, object] = {
            "status": self.status,
            "duration_ms": round((time.monotonic() - self.started) * 1000, 1),
            "outcome": self.outcome,
        }
        if self.trace_id is not None:
            fields["trace_id"] = self.trace_id
        if self.num_prompt_tokens is not None:
            fields["prompt_tokens"] = self.num_prompt_tokens
            fields["cached_tokens"] = self.num_cached_tokens
            fields["completion_tokens"] = self.num_output_tokens
        if self.first_token_s is not None:
            fields["ttft_ms"] = round(self.first_token_s * 1000, 1)
        return fields


def exchange_of(scope: Scope) -> Exchange:
    """The record the outermost layer has put there."""
    exchange = scope[SCOPE_KEY]
    assert isinstance(exchange, Exchange)
    return exchange
