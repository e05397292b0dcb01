"""Measures what speculation brings: the same requests without and with it, in turns, on one server, by the wall clock.

A request says by itself whether it is drafted (`speculative.max_draft`), so that both sides run in one process on one
engine. Each side of a case has a cache salt of its own, as a tenant has: both reuse of earlier rounds what a prompt
cache keeps, and a drafter that learns from replies learns from the drafted side's. No prompt comes twice. Knows no
engine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex
from statistics import median
from time import perf_counter
from typing import Any

import msgspec

from ortserve.gateway.bench.client import Client
from ortserve.gateway.bench.frames import error_message
from ortserve.gateway.bench.http1 import ProtocolError
from ortserve.gateway.bench.speculation_work import Work, works
from ortserve.gateway.bench.workload import BenchError, Target

_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the report."""

    kind: str
    num_streams: int
    temperature: float


@dataclass(frozen=True, slots=True)
class Turn:
    """All requests of a case, once."""

    tokens_per_s: float  # output, from the first request sent to the last reply's end
    num_output_tokens: int
    num_accepted_tokens: int
    num_rejected_tokens: int
    replies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CaseReport:
    """A case's rounds. `speedups`: tokens per second with over without, of each round's pair of turns."""

    case: Case
    plain_tokens_per_s: tuple[float, ...]
    drafted_tokens_per_s: tuple[float, ...]
    speedups: tuple[float, ...]
    guessed: float  # share of the output tokens that were accepted guesses
    accepted: float | None  # share of the guesses; None: there were none
    num_replies: int
    num_different: int  # replies that differ: near ties outside deterministic mode, otherwise an error

    @property
    def speedup(self) -> float:
        """Median."""
        return median(self.speedups)


class _Details(msgspec.Struct):
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class _Usage(msgspec.Struct):
    completion_tokens: int
    completion_tokens_details: _Details = msgspec.field(default_factory=_Details)


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage


class SpeculationRun:
    """Cases on one server; each worker keeps its connection."""

    def __init__(self, target: Target, model: str, *, num_output_tokens: int, seed: int, timeout_s: float) -> None:
        self._target = target
        self._model = model
        self._num_output_tokens = num_output_tokens
        self._seed = seed
        self._timeout_s = timeout_s
        self._name = token_hex(8)  # of this run: an earlier one on the same server must not help

    async def measure(self, case: Case, num_rounds: int) -> CaseReport:
        """One round to warm up, then `num_rounds`. Raises `BenchError` when a request fails."""
        plain, drafted = list[Turn](), list[Turn]()
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(contextlib.closing(Client(self._target, self._timeout_s)))
                for _ in range(case.num_streams)
            ]
            for number in range(num_rounds + 1):
                work = works(case.kind, self._seed + number, case.num_streams)
                # Whoever goes second finds the machine as the first left it: take turns at that too.
                for is_drafted in (False, True) if number % 2 else (True, False):
                    turn = await self._turn(clients, case, work, is_drafted=is_drafted)
                    if number:
                        (drafted if is_drafted else plain).append(turn)
        return _report(case, plain, drafted)

    async def _turn(self, clients: Sequence[Client], case: Case, work: Sequence[Work], *, is_drafted: bool) -> Turn:
        side = "drafted" if is_drafted else "plain"
        salt = f"{self._name} {case.kind} {case.num_streams} {case.temperature:g} {side}"
        bodies = [
            msgspec.json.encode(self._body(one, case, place, salt, is_drafted=is_drafted))
            for place, one in enumerate(work)
        ]
        begun = perf_counter()
        sending = (self._send(client, body) for client, body in zip(clients, bodies, strict=True))
        replies = await asyncio.gather(*sending)
        seconds = perf_counter() - begun
        usages = [reply.usage for reply in replies]
        num_output = sum(usage.completion_tokens for usage in usages)
        return Turn(
            tokens_per_s=num_output / seconds,
            num_output_tokens=num_output,
            num_accepted_tokens=sum(usage.completion_tokens_details.accepted_prediction_tokens for usage in usages),
            num_rejected_tokens=sum(usage.completion_tokens_details.rejected_prediction_tokens for usage in usages),
            replies=tuple(reply.choices[0].message.content or "" for reply in replies),
        )

    def _body(self, work: Work, case: Case, place: int, salt: str, *, is_drafted: bool) -> dict[str, Any]:
        return {
            "model": self._model,
            "temperature": case.temperature,
            "max_tokens": self._num_output_tokens,
            "seed": self._seed + place,
            "cache_salt": salt,
            **work.fields(),
            **({} if is_drafted else {"speculative": {"max_draft": 0}}),
        }

    async def _send(self, client: Client, body: bytes) -> _Reply:
        try:
            reply = await client.post(_PATH, body)
        except (OSError, TimeoutError, ProtocolError) as error:
            raise BenchError(f"{self._target.url} does not answer: {error or type(error).__name__}") from None
        if reply.status != 200:
            raise BenchError(f"{self._target.url} refuses a request: {reply.status} {error_message(reply.body)}")
        try:
            return msgspec.json.decode(reply.body, type=_Reply)
        except msgspec.MsgspecError as error:
            raise BenchError(f"{self._target.url} sends no chat completion: {error}") from None


def _report(case: Case, plain: Sequence[Turn], drafted: Sequence[Turn]) -> CaseReport:
    pairs = list(zip(plain, drafted, strict=True))
    num_output = sum(turn.num_output_tokens for turn in drafted)
    num_accepted = sum(turn.num_accepted_tokens for turn in drafted)
    num_proposed = num_accepted + sum(turn.num_rejected_tokens for turn in drafted)
    return CaseReport(
        case=case,
        plain_tokens_per_s=tuple(turn.tokens_per_s for turn in plain),
        drafted_tokens_per_s=tuple(turn.tokens_per_s for turn in drafted),
        speedups=tuple(fast.tokens_per_s / base.tokens_per_s for base, fast in pairs),
        guessed=num_accepted / max(num_output, 1),
        accepted=num_accepted / num_proposed if num_proposed else None,
        num_replies=sum(len(turn.replies) for turn in drafted),
        num_different=sum(
            one != other for base, fast in pairs for one, other in zip(base.replies, fast.replies, strict=True)
        ),
    )
