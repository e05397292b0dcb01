"""POST /v1/chat/completions. Knows no template and no token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.chat_record import ChatRecord, RecordedChunks
from ortserve.gateway.contract.chat import CHAT
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.generation import Generation, TokenUsage, WholeChoice
from ortserve.gateway.routes.bodies import json_response, now, read_request, reply_id
from ortserve.gateway.routes.whole import CLIENT_CLOSED, wait_for_choices
from ortserve.gateway.schema.chat import ChatRequest, read_chat
from ortserve.gateway.schema.replies import ChatChoice, ChatReply, chat_finish, chat_logprobs, chat_message, usage_reply
from ortserve.gateway.service import ModelService
from ortserve.gateway.sse import ChatChunks
from ortserve.gateway.store.completions import Completions
from ortserve.gateway.stream import EventStream
from ortserve.gateway.watch import Patience


@dataclass(frozen=True, slots=True)
class ChatRoute:
    """The endpoint of one model. Replies whose callers say so are kept in `completions`."""

    service: ModelService
    completions: Completions
    patience: Patience

    async def post(self, request: Request) -> Response | EventStream:
        """Answer one conversation, whole or streamed."""
        service = self.service
        exchange = exchange_of(request.scope)
        chat = await read_request(
            request, CHAT, lambda fields: read_chat(fields, service.defaults, service.vocabulary), service.pool
        )
        generation = await service.start_chat(
            chat,
            turn=exchange.turn(is_streamed=chat.stream),
            num_body_bytes=len(exchange.body),
        )
        record = ChatRecord(self.completions, exchange.tenant, chat.messages_to_keep)
        if chat.stream:
            return self._streamed(chat, generation, record)
        return await self._whole(request, chat, generation, record)

    def _streamed(self, chat: ChatRequest, generation: Generation, record: ChatRecord) -> EventStream:
        id, created = reply_id("chatcmpl"), now()
        chunks = ChatChunks(
            reply_id=id,
            created=created,
            model=self.service.name,
            fingerprint=self.service.fingerprint,
            include_usage=chat.include_usage,
            tools=chat.tools,
            includes_reasoning=chat.includes_reasoning,
        )
        if record.messages is None:
            return EventStream(generation, chunks, self.patience)
        recorded = RecordedChunks(chunks, record, partial(self._reply, chat, id, created))
        return EventStream(generation, recorded, self.patience, recorded.keep)

    async def _whole(self, request: Request, chat: ChatRequest, generation: Generation, record: ChatRecord) -> Response:
        created = now()
        choices = await wait_for_choices(request, generation, self.patience)
        if choices is None:
            return Response(status_code=CLIENT_CLOSED)
        reply = self._reply(chat, reply_id("chatcmpl"), created, choices, generation.usage())
        await record.add(reply)
        return json_response(reply)

    def _reply(
        self, chat: ChatRequest, id: str, created: int, choices: Sequence[WholeChoice], usage: TokenUsage
    ) -> ChatReply:
        with_logprobs = chat.sampling.num_logprobs is not None
        no_metadata: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET if chat.messages_to_keep is None else {}
        return ChatReply(
            id=id,
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
            usage=usage_reply(usage),
            system_fingerprint=self.service.fingerprint,
            metadata=no_metadata if chat.metadata is None else chat.metadata,
        )
