"""POST /v1/responses and /v1/responses/input_tokens. Knows no template and no token."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.contract.responses import RESPONSES
from ortserve.gateway.errors import ApiError, not_found, previous_response_not_found
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.generation import ChoicePiece, Generation
from ortserve.gateway.response_draft import ResponseDraft
from ortserve.gateway.response_sse import ResponseEvents
from ortserve.gateway.routes.bodies import json_response, now, read_request
from ortserve.gateway.routes.whole import CLIENT_CLOSED, wait_for_choices
from ortserve.gateway.schema.chat import ChatRequest
from ortserve.gateway.schema.response_replies import InputTokensReply
from ortserve.gateway.schema.responses import ResponseCall, read_response_call
from ortserve.gateway.service import ModelService
from ortserve.gateway.stream import EventStream
from ortserve.gateway.watch import Patience

PARAM = "input"


@dataclass(frozen=True, slots=True)
class ResponsesRoute:
    """The endpoints of one model."""

    service: ModelService
    patience: Patience

    async def post(self, request: Request) -> Response | EventStream:
        """Answer one conversation, whole or streamed."""
        service = self.service
        exchange = exchange_of(request.scope)
        num_body_bytes = len(exchange.body)
        call = await self._read(request)
        chat = self._chat(call)
        created_at = now()
        generation = await service.start_chat(chat, tenant=exchange.tenant, num_body_bytes=num_body_bytes, param=PARAM)
        draft = ResponseDraft(call.echo, model=service.name, created_at=created_at)
        if call.stream:
            return EventStream(generation, ResponseEvents(draft), self.patience)
        return await self._whole(request, generation, draft)

    async def input_tokens(self, request: Request) -> Response:
        """How long the prompt of such a call is."""
        chat = self._chat(await self._read(request))
        size = len(exchange_of(request.scope).body)
        return json_response(InputTokensReply(await self.service.count_tokens(chat, num_body_bytes=size, param=PARAM)))

    async def _read(self, request: Request) -> ResponseCall:
        service = self.service
        return await read_request(
            request,
            RESPONSES,
            lambda fields: read_response_call(fields, service.defaults, service.vocabulary),
            service.pool,
        )

    def _chat(self, call: ResponseCall) -> ChatRequest:
        """The whole conversation: what the call names, and what it says itself."""
        echo = call.echo
        if echo.previous_response_id is not None:
            raise ApiError(previous_response_not_found(echo.previous_response_id))
        if echo.conversation is not None:
            raise ApiError(not_found("Conversation", echo.conversation.id, param="conversation"))
        for index, item in enumerate(call.input):
            if item.is_reference:
                raise ApiError(not_found("Item", item.id, param=f"input[{index}]"))
        return call.with_items(call.input, self.service.name if call.model is None else call.model)

    async def _whole(self, request: Request, generation: Generation, draft: ResponseDraft) -> Response:
        choices = await wait_for_choices(request, generation, self.patience)
        if choices is None:
            return Response(status_code=CLIENT_CLOSED)
        (choice,) = choices
        draft.add(ChoicePiece(0, choice.text, choice.tokens, choice.finish, choice.stop))
        return json_response(draft.complete(generation.usage()))
