"""Prefixes that the operator wants computed before anybody asks, and kept. Knows no socket and no cache plugin."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from ortserve.gateway.access.tenancy import salt_of
from ortserve.gateway.errors import ApiError, bad_request, unavailable
from ortserve.gateway.logs import log
from ortserve.gateway.schema.caching import read_ttl
from ortserve.gateway.schema.fields import Fields, invalid_type, parse_object
from ortserve.gateway.schema.messages import Message, read_messages
from ortserve.gateway.schema.sampling import Vocabulary, read_prompt_ids
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.errors import OrtserveError
from ortserve.runtime.request import CacheHints, Request, SamplingParams

ANSWER_S = 30.0  # the engine answers between two steps
NUM_PINS = 3  # a block computed last is published by the step after it
FOREVER_S = 10 * 365 * 86400.0

Answer = TypeVar("Answer")
Whose: TypeAlias = Callable[[str | None], bytes]  # the tenant of a key; of None: whose prefixes are meant otherwise


class WarmingError(OrtserveError):
    """A file of prefixes cannot be used; names the line."""


@dataclass(frozen=True, slots=True)
class WarmRequest:
    """A prefix: the beginning of conversations, or of texts. Exactly one of `messages` and `prompt` is set."""

    tenant: bytes
    messages: tuple[Message, ...] | None
    prompt: str | tuple[int, ...] | None
    salt: str | None
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Warmed:
    """Tokens of the prefix, those that had been cached before, and those that are now kept."""

    num_tokens: int
    num_cached_tokens: int
    num_pinned_tokens: int


def read_warm(fields: Fields, vocabulary: Vocabulary, *, whose: Whose) -> WarmRequest:
    """`messages` or `prompt`; `ttl` (the server's life), `cache_salt`, and `api_key` of those it is for."""
    prompt = fields.get("prompt")
    if isinstance(prompt, list):
        prompt = read_prompt_ids(prompt, "prompt", vocabulary)
    if prompt is not None and not isinstance(prompt, str | tuple):
        raise invalid_type("prompt", "one of a string or array of integers", prompt)
    if (prompt is None) != fields.has("messages"):
        raise bad_request("Give one of 'messages' and 'prompt'.", param="messages", code="invalid_value")
    key = fields.string("api_key")
    return WarmRequest(
        tenant=whose(key),
        messages=read_messages(fields, vocabulary) if prompt is None else None,
        prompt=prompt,
        salt=fields.string("cache_salt"),
        ttl_s=read_ttl(fields) or FOREVER_S,
    )


async def warm(service: ModelService, request: WarmRequest) -> Warmed:
    """Compute the prefix by a request for one token, and keep it. Raises `ApiError` or `OrtserveError`.

    Where positions rotate by how long a request becomes, it is computed for requests of every length.
    """
    ids = await _prefix_ids(service, request)
    salt = salt_of(request.tenant, request.salt)
    num_cached = len(ids)
    for regime in service.driver.plan.rotary_regimes:
        if regime.max_tokens > len(ids):
            request_for = Request(
                f"warm-{secrets.token_hex(8)}",
                ids,
                SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True),
                cache=CacheHints(salt),
                planned_tokens=regime.max_tokens,
            )
            num_cached = min(num_cached, await service.compute(request_for))
    num_pinned = 0
    for _ in range(NUM_PINS):
        num_pinned = await answer_of(service.driver.cache_pin(ids, salt, request.ttl_s))
        if num_pinned == len(ids):
            break
    return Warmed(len(ids), num_cached, num_pinned)


async def _prefix_ids(service: ModelService, request: WarmRequest) -> tuple[int, ...]:
    if request.messages is not None:
        return await service.prompts.encode_beginning(request.messages)
    if isinstance(request.prompt, tuple):
        service.prompts.check_length(request.prompt, "prompt")
        return request.prompt
    assert request.prompt is not None
    (ids,) = await service.prompts.encode_texts([request.prompt])
    return ids


def read_warm_file(path: Path, vocabulary: Vocabulary, *, whose: Whose) -> list[WarmRequest]:
    """One JSON object per line; empty lines are skipped. Raises `WarmingError`."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise WarmingError(f"{path} cannot be read ({error.strerror}): check --warm") from None
    requests = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                requests.append(read_warm(parse_object(line), vocabulary, whose=whose))
            except ApiError as error:
                raise WarmingError(f"{path}, line {number}: {error.problem.message}") from None
    return requests


async def warm_all(service: ModelService, requests: Sequence[WarmRequest]) -> None:
    """One after another, each logged by its counts. Raises `WarmingError` naming the place of the first that fails."""
    for number, request in enumerate(requests, 1):
        try:
            warmed = await warm(service, request)
        except ApiError as error:
            raise WarmingError(f"prefix {number} of --warm: {error.problem.message}") from None
        log().info(
            "warmed",
            prefix=number,
            tokens=warmed.num_tokens,
            cached_tokens=warmed.num_cached_tokens,
            pinned_tokens=warmed.num_pinned_tokens,
        )


async def answer_of(future: Future[Answer]) -> Answer:
    """What the engine's thread says. Raises `ApiError` (503) when it is silent for too long."""
    try:
        async with asyncio.timeout(ANSWER_S):
            # Shielded: the engine must not find a future that has been cancelled under its hands.
            return await asyncio.shield(asyncio.wrap_future(future))
    except TimeoutError:
        raise ApiError(unavailable("The engine is busy and did not answer.")) from None
