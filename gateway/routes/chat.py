"""POST /v1/chat/completions. Knows no template and no token."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.contract.chat import CHAT
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.generation import Generation
from ortserve.gateway.routes.bodies import json_response, now, read_request, reply_id
from ortserve.gateway.routes.whole import CLIENT_CLOSED, wait_for_choices
from ortserve.gateway.schema.chat import ChatRequest, read_chat
from ortserve.gateway.schema.replies import ChatChoice, ChatReply, chat_finish, chat_logprobs, chat_message, usage_reply
from ortserve.gateway.service import ModelService
from ortserve.gateway.sse import ChatChunks
from ortserve.gateway.stream import EventStream
from ortserve.gateway.watch import Patience


@dataclass(frozen=True, slots=True)
class ChatRoute:
    """The endpoint of one model."""

    service: ModelService
    patience: Patience

    async def post(self, request: Request) -> Response | EventStream:
        """Answer one conversation, whole or streamed."""
        service = self.service
        exchange = exchange_of(request.scope)
        chat = await read_request(
            request, CHAT, lambda fields: read_chat(fields, service.defaults, service.vocabulary), service.pool
        )
        generation = await service.start_chat(
            chat, tenant=exchange.tenant, num_body_bytes=len(exchange.body), priority=exchange.priority
        )
        if not chat.stream:
            return await self._whole(request, chat, generation)
        chunks = ChatChunks(
            reply_id=reply_id("chatcmpl"),
            created=now(),
            model=service.name,
            fingerprint=service.fingerprint,
            include_usage=chat.include_usage,
            tools=chat.tools,
            includes_reasoning=chat.includes_reasoning,
        )
        return EventStream(generation, chunks, self.patience)

    async def _whole(self, request: Request, chat: ChatRequest, generation: Generation) -> Response:
        created = now()
        choices = await wait_for_choices(request, generation, self.patience)
        if choices is None:
            return Response(status_code=CLIENT_CLOSED)
        with_logprobs = chat.sampling.num_logprobs is not None
        reply = ChatReply(
            id=reply_id("chatcmpl"),
            created=created,
            model=self.service.name,
            choices=[
                ChatChoice(
                    index=choice.index,
                    message=chat_message(
                        choice, is_legacy=chat.tools.is_legacy, includes_reasoning=chat.includes_reasoning
                    ),
                    logprobs=chat_logprobs(choice.tokens) if with_logprobs else None,
                    finish_reason=chat_finish(choice.finish, chat.tools),
                )
                for choice in choices
            ],
            usage=usage_reply(generation.usage()),
            system_fingerprint=self.service.fingerprint,
        )
        return json_response(reply)
