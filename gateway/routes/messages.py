"""POST /v1/messages and /v1/messages/count_tokens, Anthropic's API. Knows no template and no token."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.anthropic import (
    MessageReply,
    TokenCountReply,
    content_blocks,
    message_usage,
    stop_reason,
)
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.http.watch import Patience
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.replies.generation import Generation
from ortserve.gateway.request_fields.messages import MESSAGES
from ortserve.gateway.routes.bodies import json_response, read_addressed
from ortserve.gateway.routes.whole import CLIENT_CLOSED, wait_for_choices
from ortserve.gateway.schema.anthropic import read_counted_call, read_message_call
from ortserve.gateway.schema.chat import ChatRequest
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.sampling import SamplingDefaults, Vocabulary
from ortserve.gateway.served.service import ModelService
from ortserve.gateway.streams.anthropic_sse import MessageEvents
from ortserve.gateway.streams.stream import EventStream


@dataclass(frozen=True, slots=True)
class MessagesRoute:
    """The endpoints of all models that generate."""

    fleet: Fleet
    pool: WorkPool
    patience: Patience

    async def post(self, request: Request) -> Response | EventStream:
        """Answer one conversation, whole or streamed."""
        exchange = exchange_of(request.scope)
        service, chat = await self._read(request, read_message_call)
        generation = await service.start_chat(
            chat,
            turn=exchange.turn(is_streamed=chat.stream),
            num_body_bytes=len(exchange.body),
        )
        reply_id = f"msg_{secrets.token_hex(14)}"
        if not chat.stream:
            return await self._whole(request, service, chat, generation, reply_id)
        num_prompt_tokens = generation.usage().num_prompt_tokens
        events = MessageEvents(
            reply_id=reply_id,
            model=service.name,
            num_prompt_tokens=num_prompt_tokens,
            includes_reasoning=chat.includes_reasoning,
        )
        return EventStream(generation, events, self.patience)

    async def count_tokens(self, request: Request) -> Response:
        """How long the prompt of such a call is."""
        service, chat = await self._read(request, read_counted_call)
        size = len(exchange_of(request.scope).body)
        return json_response(TokenCountReply(await service.count_tokens(chat, num_body_bytes=size)))

    async def _read(
        self, request: Request, read: Callable[[Fields, SamplingDefaults, Vocabulary], ChatRequest]
    ) -> tuple[ModelService, ChatRequest]:
        return await read_addressed(
            request,
            MESSAGES,
            lambda fields, service: read(fields, service.defaults, service.vocabulary),
            self.fleet,
            self.pool,
        )

    async def _whole(
        self, request: Request, service: ModelService, chat: ChatRequest, generation: Generation, reply_id: str
    ) -> Response:
        choices = await wait_for_choices(request, generation, self.patience)
        if choices is None:
            return Response(status_code=CLIENT_CLOSED)
        (choice,) = choices
        reply = MessageReply(
            id=reply_id,
            model=service.name,
            content=content_blocks(choice, includes_reasoning=chat.includes_reasoning),
            stop_reason=stop_reason(choice.finish, choice.stop),
            stop_sequence=choice.stop,
            usage=message_usage(generation.usage()),
        )
        return json_response(reply)
