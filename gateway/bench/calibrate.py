"""Finds out how a server counts tokens and what it accepts, with a few one-token requests. Knows no load."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

import msgspec

from ortserve.gateway.bench.client import Client, Reply
from ortserve.gateway.bench.frames import error_message, one_line
from ortserve.gateway.bench.http1 import ProtocolError
from ortserve.gateway.bench.prompts import FIRST_WORD, Prompt, PromptSource, TokenIds, Vocabulary, Words, request_fields
from ortserve.gateway.bench.workload import Api, BenchError, Target, Workload

_LARGEST_VOCABULARY = 32_768  # ids below this exist in nearly every model
_SMALLEST_VOCABULARY = 64
_MOST_FIXED = 8  # more tokens added to an id array than this: the server did not take the ids as they are
_REPEATS = 8  # of each word in a calibration text
_WORDS = (
    *ascii_lowercase,
    *("the", "of", "and", "to", "in", "is", "it", "for", "on", "with", "as", "at", "by", "be", "this", "that"),
)
_VOLATILE_HEADERS = frozenset(
    {"date", "content-length", "connection", "keep-alive", "transfer-encoding", "set-cookie", "x-request-id"}
)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned about the server before the load."""

    source: PromptSource
    num_prompt_tokens: int  # of a full-size prompt, as the server counts it
    headers: Mapping[str, str]  # of a reply, without those that change from reply to reply
    model: Mapping[str, Any]  # the model's entry in /v1/models; empty when there is none
    notes: tuple[str, ...]  # what the reader of the figures should know


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Counted(msgspec.Struct):
    usage: _Usage | None = None


class _Models(msgspec.Struct):
    data: list[dict[str, Any]]


class Probe:
    """Asks one server questions about one workload."""

    def __init__(self, client: Client, target: Target, workload: Workload) -> None:
        self._client = client
        self._target = target
        self._workload = workload
        self._fixed_length = True

    async def calibrate(self) -> Calibration:
        """Raises `BenchError` when the server cannot be reached or refuses the workload."""
        notes: list[str] = []
        first = await self._ask(FIRST_WORD)
        if first.status != 200:
            self._fixed_length = False
            again = await self._ask(FIRST_WORD)
            if again.status != 200:
                raise BenchError(f"the server refuses a plain request: {again.status} {error_message(again.body)}")
            notes.append("the server refuses ignore_eos and min_tokens: replies may be shorter than asked")
        vocabulary = await self._vocabulary()
        source = PromptSource(self._workload, vocabulary, self._fixed_length)
        full = await self._count(source.prompt(-1))
        if full != self._workload.num_prompt_tokens:
            notes.append(f"prompts have {full} tokens, {self._workload.num_prompt_tokens} were asked for")
        headers = {name: value for name, value in first.headers.items() if name not in _VOLATILE_HEADERS}
        return Calibration(source, full, headers, await self._model_entry(), tuple(notes))

    async def _vocabulary(self) -> Vocabulary:
        if self._workload.api is Api.COMPLETIONS:
            high = _LARGEST_VOCABULARY
            while high >= _SMALLEST_VOCABULARY:
                # The lowest ids are often special; a quarter of the range is left out to be clear of them.
                found = await self._token_ids(high // 4, high)
                if found is not None:
                    return found
                high //= 2
        return await self._words()

    async def _token_ids(self, low: int, high: int) -> TokenIds | None:
        """None when the server refuses these ids, or counts them otherwise than one by one."""
        ids = [low, *range(high - 15, high)]
        short, long = await self._ask(ids), await self._ask(ids * 2)
        if short.status != 200 or long.status != 200:
            return None
        num_fixed = _num_prompt_tokens(short) - len(ids)
        if not 0 <= num_fixed <= _MOST_FIXED or _num_prompt_tokens(long) - 2 * len(ids) != num_fixed:
            return None
        return TokenIds(low, high, num_fixed)

    async def _words(self) -> Words:
        num_fixed = await self._count(FIRST_WORD)
        words = await self._one_token_words(_WORDS, num_fixed)
        if len(words) < 2:
            raise BenchError("no words of one token were found for this server: use --api completions")
        return Words(words, num_fixed)

    async def _one_token_words(self, words: tuple[str, ...], num_fixed: int) -> tuple[str, ...]:
        """Those of `words` that cost one token each: a group that does not add up is halved."""
        count = await self._count(" ".join([FIRST_WORD, *(word for word in words for _ in range(_REPEATS))]))
        if count - num_fixed == len(words) * _REPEATS:
            return words
        if len(words) == 1:
            return ()
        half = len(words) // 2
        first = await self._one_token_words(words[:half], num_fixed)
        return first + await self._one_token_words(words[half:], num_fixed)

    async def _count(self, prompt: Prompt) -> int:
        reply = await self._ask(prompt)
        if reply.status != 200:
            raise BenchError(f"the server refuses the prompt: {reply.status} {error_message(reply.body)}")
        return _num_prompt_tokens(reply)

    async def _ask(self, prompt: Prompt) -> Reply:
        fields = request_fields(self._workload, prompt, 1, fixed_length=self._fixed_length)
        path = "/v1/chat/completions" if self._workload.api is Api.CHAT else "/v1/completions"
        return await reach(self._target, self._client.post(path, msgspec.json.encode(fields | {"temperature": 0})))

    async def _model_entry(self) -> dict[str, Any]:
        for entry in await list_models(self._client, self._target):
            if entry.get("id") == self._workload.model:
                return entry
        return {}


async def list_models(client: Client, target: Target) -> list[dict[str, Any]]:
    """The entries of /v1/models, or none when the server has no such list. Raises `BenchError` as `reach` does."""
    reply = await reach(target, client.get("/v1/models"))
    try:
        return msgspec.json.decode(reply.body, type=_Models).data if reply.status == 200 else []
    except msgspec.MsgspecError:
        return []


async def reach(target: Target, reply: Awaitable[Reply]) -> Reply:
    """Await a reply; a server that cannot be reached or does not speak HTTP becomes a `BenchError`."""
    try:
        return await reply
    except TimeoutError:
        raise BenchError(f"{target.url} does not answer in time: raise --timeout") from None
    except OSError as error:
        reason = one_line(error.strerror or str(error))
        raise BenchError(f"cannot reach {target.url} ({reason}): start the server, or pass its --url") from None
    except ProtocolError as error:
        raise BenchError(f"{target.url} does not answer like an HTTP server: {error}") from None


def _num_prompt_tokens(reply: Reply) -> int:
    try:
        usage = msgspec.json.decode(reply.body, type=_Counted).usage
    except msgspec.MsgspecError as error:
        raise BenchError(f"the reply is not a completion: {error}") from None
    if usage is None:
        raise BenchError("the reply has no usage: prompts of a known length cannot be made for this server")
    return usage.prompt_tokens
