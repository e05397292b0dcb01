"""POST /v1/responses and /v1/responses/input_tokens. Knows no template and no token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.responses import InputTokensReply
from ortserve.gateway.errors import ApiError
from ortserve.gateway.exchange import Exchange, exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.http.watch import Patience
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.replies.generation import Generation
from ortserve.gateway.request_fields.responses import RESPONSES
from ortserve.gateway.responses.draft import ResponseDraft
from ortserve.gateway.responses.record import ResponseRecord
from ortserve.gateway.responses.runs import Run, Runs
from ortserve.gateway.responses.sse import ResponseEvents
from ortserve.gateway.responses.thread import Thread, find_thread
from ortserve.gateway.responses.truncating import fitting_chat, is_overflow
from ortserve.gateway.routes.bodies import INLINE_BYTES, json_response, now, read_addressed
from ortserve.gateway.routes.whole import CLIENT_CLOSED, wait_for_reply
from ortserve.gateway.schema.chat import ChatRequest
from ortserve.gateway.schema.items import Item
from ortserve.gateway.schema.responses import ResponseCall, read_response_call
from ortserve.gateway.served.service import ModelService
from ortserve.gateway.store.state import State
from ortserve.gateway.streams.followed import FollowedRun
from ortserve.gateway.streams.stream import EventStream

PARAM = "input"


@dataclass(frozen=True, slots=True)
class ResponsesRoute:
    """The endpoints of one model."""

    fleet: Fleet
    pool: WorkPool
    state: State
    runs: Runs
    patience: Patience

    async def post(self, request: Request) -> Response | EventStream | FollowedRun:
        """Answer one conversation: whole, streamed, or in the background."""
        exchange = exchange_of(request.scope)
        service, call = await self._read(request)
        if call.echo.background:
            self.runs.check_room()
        thread = await find_thread(self.state, exchange.tenant, call, service.pool)
        created_at = now()
        generation = await self._start(service, call, thread, exchange)
        draft = ResponseDraft(call.echo, model=service.name, created_at=created_at, namespaces=call.namespaces)
        record = ResponseRecord(self.state, exchange.tenant, thread)
        if call.echo.background:
            return await self._behind(call, generation, draft, record, exchange)
        if call.stream:
            return EventStream(generation, ResponseEvents(draft), self.patience, lambda: record.add(draft.reply))
        return await self._whole(request, generation, draft, record)

    async def input_tokens(self, request: Request) -> Response:
        """How long the prompt of such a call is."""
        service, call = await self._read(request)
        thread = await find_thread(self.state, exchange_of(request.scope).tenant, call, service.pool)
        _, chat = await _chat(service, call, thread)
        num_tokens = await service.count_tokens(chat, num_body_bytes=thread.num_bytes, param=PARAM)
        return json_response(InputTokensReply(num_tokens))

    async def _read(self, request: Request) -> tuple[ModelService, ResponseCall]:
        return await read_addressed(
            request,
            RESPONSES,
            lambda fields, service: read_response_call(fields, service.defaults, service.vocabulary),
            self.fleet,
            self.pool,
        )

    async def _start(self, service: ModelService, call: ResponseCall, thread: Thread, exchange: Exchange) -> Generation:
        items, chat = await _chat(service, call, thread)
        num_bytes = thread.num_bytes + len(call.echo.instructions or "")
        turn = exchange.turn(is_streamed=call.stream)
        start = partial(
            service.start_chat,
            # What runs in the background outlives its request.
            turn=replace(turn, max_wait_s=None) if call.echo.background else turn,
            num_body_bytes=num_bytes,
            param=PARAM,
        )
        try:
            return await start(chat)
        except ApiError as error:
            if call.echo.truncation == "disabled" or not is_overflow(error):
                raise
        return await start(await fitting_chat(service, call, items, service.name, num_bytes=num_bytes))

    async def _whole(
        self, request: Request, generation: Generation, draft: ResponseDraft, record: ResponseRecord
    ) -> Response:
        reply = await wait_for_reply(request, generation, draft.take(generation), self.patience)
        if reply is None:
            return Response(status_code=CLIENT_CLOSED)
        await record.add(reply)
        return json_response(reply)

    async def _behind(
        self,
        call: ResponseCall,
        generation: Generation,
        draft: ResponseDraft,
        record: ResponseRecord,
        exchange: Exchange,
    ) -> Response | FollowedRun:
        """Once it is kept it runs by itself, whatever becomes of this request."""
        run = Run(draft, generation, record, with_events=call.stream, started=exchange.started)
        try:
            await record.begin(draft.reply)
        except BaseException:
            generation.close()
            raise
        queued = json_response(draft.reply)
        exchange.runs_on = True

        def settle() -> None:
            exchange.note(generation)
            exchange.end()

        self.runs.start(run, settle)
        return FollowedRun(run.follow(-1), self.patience) if call.stream else queued


async def _chat(service: ModelService, call: ResponseCall, thread: Thread) -> tuple[tuple[Item, ...], ChatRequest]:
    """The whole conversation, as items and as a chat."""

    def work() -> tuple[tuple[Item, ...], ChatRequest]:
        items = thread.items()
        return items, call.with_items(items, service.name)

    return work() if thread.num_bytes <= INLINE_BYTES else await service.pool.run(work)
