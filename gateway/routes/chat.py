"""POST /v1/chat/completions. Knows no template and no token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.chat import ChatChoice, ChatReply, chat_finish, chat_logprobs, chat_message
from ortserve.gateway.answers.usage import usage_reply
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.http.watch import Patience
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.replies.generation import Generation, TokenUsage, WholeChoice
from ortserve.gateway.request_fields.chat import CHAT
from ortserve.gateway.responses.chat_record import ChatRecord, RecordedChunks
from ortserve.gateway.routes.bodies import json_response, now, read_addressed, reply_id
from ortserve.gateway.routes.whole import CLIENT_CLOSED, wait_for_choices
from ortserve.gateway.schema.chat import ChatRequest, read_chat
from ortserve.gateway.served.service import ModelService
from ortserve.gateway.store.completions import Completions
from ortserve.gateway.streams.sse import ChatChunks
from ortserve.gateway.streams.stream import EventStream


@dataclass(frozen=True, slots=True)
class ChatRoute:
    """The endpoint of all models that generate. Replies whose callers say so are kept in `completions`."""

    fleet: Fleet
    pool: WorkPool
    completions: Completions
    patience: Patience

    async def post(self, request: Request) -> Response | EventStream:
        """Answer one conversation, whole or streamed."""
        exchange = exchange_of(request.scope)
        service, chat = await read_addressed(
            request,
            CHAT,
            lambda fields, service: read_chat(fields, service.defaults, service.vocabulary),
            self.fleet,
            self.pool,
        )
        generation = await service.start_chat(
            chat,
            turn=exchange.turn(is_streamed=chat.stream),
            num_body_bytes=len(exchange.body),
        )
        record = ChatRecord(self.completions, exchange.tenant, chat.messages_to_keep)
        if chat.stream:
            return self._streamed(service, chat, generation, record)
        return await self._whole(request, service, chat, generation, record)

    def _streamed(
        self, service: ModelService, chat: ChatRequest, generation: Generation, record: ChatRecord
    ) -> EventStream:
        id, created = reply_id("chatcmpl"), now()
        chunks = ChatChunks(
            reply_id=id,
            created=created,
            model=service.name,
            fingerprint=service.fingerprint,
            include_usage=chat.include_usage,
            tools=chat.tools,
            includes_reasoning=chat.includes_reasoning,
        )
        if record.messages is None:
            return EventStream(generation, chunks, self.patience)
        recorded = RecordedChunks(chunks, record, _Answer(service, chat, id, created).reply)
        return EventStream(generation, recorded, self.patience, recorded.keep)

    async def _whole(
        self,
        request: Request,
        service: ModelService,
        chat: ChatRequest,
        generation: Generation,
        record: ChatRecord,
    ) -> Response:
        created = now()
        choices = await wait_for_choices(request, generation, self.patience)
        if choices is None:
            return Response(status_code=CLIENT_CLOSED)
        reply = _Answer(service, chat, reply_id("chatcmpl"), created).reply(choices, generation.usage())
        await record.add(reply)
        return json_response(reply)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a reply says before anything has been generated."""

    service: ModelService
    chat: ChatRequest
    id: str
    created: int

    def reply(self, choices: Sequence[WholeChoice], usage: TokenUsage) -> ChatReply:
        """All of it."""
        chat = self.chat
        with_logprobs = chat.sampling.num_logprobs is not None
        no_metadata: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET if chat.messages_to_keep is None else {}
        return ChatReply(
            id=self.id,
            created=self.created,
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
