"""POST /v1/completions. Knows no tokenizer and no template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.completions import CompletionChoice, CompletionReply, completion_logprobs
from ortserve.gateway.answers.usage import usage_reply
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.http.watch import Patience
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.replies.generation import Generation, WholeChoice
from ortserve.gateway.request_fields.completions import COMPLETIONS
from ortserve.gateway.routes.bodies import json_response, now, read_addressed, reply_id
from ortserve.gateway.routes.whole import CLIENT_CLOSED, wait_for_choices
from ortserve.gateway.schema.completions import CompletionRequest, read_completion
from ortserve.gateway.served.service import ModelService
from ortserve.gateway.streams.sse import CompletionChunks
from ortserve.gateway.streams.stream import EventStream


@dataclass(frozen=True, slots=True)
class CompletionRoute:
    """The endpoint of all models that generate."""

    fleet: Fleet
    pool: WorkPool
    patience: Patience

    async def post(self, request: Request) -> Response | EventStream:
        """Continue one or more prompts, whole or streamed."""
        exchange = exchange_of(request.scope)
        service, completion = await read_addressed(
            request,
            COMPLETIONS,
            lambda fields, service: read_completion(fields, service.defaults, service.vocabulary),
            self.fleet,
            self.pool,
        )
        prompts = await service.read_prompts(completion)
        echoes = [prompt.echo for prompt in prompts for _ in range(completion.num_choices)]
        generation = service.start_completion(completion, prompts, turn=exchange.turn(is_streamed=completion.stream))
        if not completion.stream:
            return await self._whole(request, service, completion, generation, echoes)
        chunks = CompletionChunks(
            tuple(echoes),
            reply_id=reply_id("cmpl"),
            created=now(),
            model=service.name,
            fingerprint=service.fingerprint,
            include_usage=completion.include_usage,
            judges_prompt=completion.sampling.num_prompt_logprobs is not None,
        )
        return EventStream(generation, chunks, self.patience)

    async def _whole(
        self,
        request: Request,
        service: ModelService,
        completion: CompletionRequest,
        generation: Generation,
        echoes: Sequence[str],
    ) -> Response:
        created = now()
        choices = await wait_for_choices(request, generation, self.patience)
        if choices is None:
            return Response(status_code=CLIENT_CLOSED)
        choices = _best(choices, completion)
        reply = CompletionReply(
            id=reply_id("cmpl"),
            created=created,
            model=service.name,
            choices=[
                _choice(index, choice, echo, with_logprobs=completion.with_logprobs)
                for index, (choice, echo) in enumerate(zip(choices, echoes, strict=True))
            ],
            usage=usage_reply(generation.usage()),
            system_fingerprint=service.fingerprint,
        )
        return json_response(reply)


def _choice(index: int, choice: WholeChoice, echo: str, *, with_logprobs: bool) -> CompletionChoice:
    logprobs = completion_logprobs(choice.tokens, offset=len(echo), prompt=choice.prompt) if with_logprobs else None
    return CompletionChoice(index, echo + choice.text, logprobs, choice.finish)


def _best(choices: list[WholeChoice], completion: CompletionRequest) -> list[WholeChoice]:
    """Of each prompt's candidates as many as are wanted, the one with the largest mean log-probability first."""
    total, wanted = completion.num_candidates, completion.num_choices
    if total == wanted:
        return choices
    best: list[WholeChoice] = []
    for begin in range(0, len(choices), total):
        best += sorted(choices[begin : begin + total], key=_mean_logprob, reverse=True)[:wanted]
    return best


def _mean_logprob(choice: WholeChoice) -> float:
    if not choice.tokens:
        return -math.inf
    return math.fsum(token.logprob for token in choice.tokens) / len(choice.tokens)
