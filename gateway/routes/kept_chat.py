"""GET, POST and DELETE on /v1/chat/completions and below: what is kept of chat completions. Knows no generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.deleted import DeletedReply
from ortserve.gateway.errors import ApiError, not_found
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.request_fields.conversations import METADATA_UPDATE
from ortserve.gateway.routes.bodies import INLINE_BYTES, json_response, read_request
from ortserve.gateway.routes.pages import list_response, query_pairs, read_page, wrong_cursor
from ortserve.gateway.schema.kept_chat import listed_messages
from ortserve.gateway.schema.metadata import read_new_metadata
from ortserve.gateway.store.pages import CursorError, Page, page_of
from ortserve.gateway.store.records import Record
from ortserve.gateway.store.state import State


@dataclass(frozen=True, slots=True)
class KeptChatRoute:
    """The endpoints of chat completions that were created with `store`. Another caller's are a 404."""

    state: State
    pool: WorkPool

    async def index(self, request: Request) -> Response:
        """All of them, or those of a model or with some metadata; the oldest first."""
        model, metadata = request.query_params.get("model"), query_pairs(request, "metadata")
        wanted = read_page(request, ascending=True)
        try:
            page = await self.state.completions.page(_tenant(request), wanted, model=model, metadata=metadata)
        except CursorError as error:
            raise wrong_cursor(error, request) from None
        return list_response(Page([(record.id, record.body) for record in page.elements], page.has_more))

    async def get(self, request: Request) -> Response:
        """The reply that was sent, with its metadata."""
        return _raw((await self._record(request)).body)

    async def update(self, request: Request) -> Response:
        """New metadata in place of the old."""
        metadata = await read_request(request, METADATA_UPDATE, read_new_metadata, self.pool)

        def change(body: bytes) -> bytes:
            return _with_metadata(body, metadata)

        body = await self.state.completions.replace(_tenant(request), _id(request), change)
        if body is None:
            raise _unknown(request)
        return _raw(body)

    async def delete(self, request: Request) -> Response:
        """Forget it and its messages."""
        if not await self.state.completions.delete(_tenant(request), _id(request)):
            raise _unknown(request)
        return json_response(DeletedReply(_id(request), "chat.completion.deleted"))

    async def messages(self, request: Request) -> Response:
        """What it answers, in the order of the conversation."""
        wanted = read_page(request, ascending=True)
        record = await self._record(request)
        kept = record.extra or b"[]"
        work = partial(listed_messages, record.id, kept)
        listed = dict(work() if len(kept) <= INLINE_BYTES else await self.pool.run(work))
        try:
            page = page_of(tuple(listed), wanted)
        except CursorError as error:
            raise wrong_cursor(error, request) from None
        return list_response(Page([(id, listed[id]) for id in page.elements], page.has_more))

    async def _record(self, request: Request) -> Record:
        record = await self.state.completions.find(_tenant(request), _id(request))
        if record is None:
            raise _unknown(request)
        return record


def _with_metadata(body: bytes, metadata: Mapping[str, str]) -> bytes:
    reply = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**reply, "metadata": metadata})


def _unknown(request: Request) -> ApiError:
    return ApiError(not_found("Chat completion", _id(request)))


def _raw(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _id(request: Request) -> str:
    return str(request.path_params["id"])


def _tenant(request: Request) -> bytes:
    return exchange_of(request.scope).tenant
