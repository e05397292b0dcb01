"""/v1/conversations and their items. Knows no generation."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.conversations import ConversationReply
from ortserve.gateway.answers.deleted import DeletedReply
from ortserve.gateway.errors import ApiError, bad_request, not_found
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.ids import new_id
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.request_fields.conversations import CONVERSATION_ITEMS, CONVERSATIONS, METADATA_UPDATE
from ortserve.gateway.responses.thread import kept_of
from ortserve.gateway.routes.bodies import json_response, now, read_request
from ortserve.gateway.routes.pages import list_response, query_words, read_page, wrong_cursor
from ortserve.gateway.schema.conversations import read_conversation_call, read_new_items
from ortserve.gateway.schema.items import Item
from ortserve.gateway.schema.metadata import read_new_metadata
from ortserve.gateway.schema.responses import INCLUDABLE
from ortserve.gateway.store.pages import CursorError, Page
from ortserve.gateway.store.state import State


@dataclass(frozen=True, slots=True)
class ConversationsRoute:
    """The endpoints of conversations. An id that is not kept is a 404, whoever keeps it."""

    state: State
    pool: WorkPool

    async def create(self, request: Request) -> Response:
        """Begin one, perhaps with items."""
        new = await read_request(request, CONVERSATIONS, read_conversation_call, self.pool)
        reply = ConversationReply(new_id("conv"), now(), new.metadata)
        first = [kept_of(item) for item in new.items]
        body = msgspec.json.encode(reply)
        await self.state.conversations.add(_tenant(request), reply.id, reply.created_at, body, first)
        return json_response(reply)

    async def get(self, request: Request) -> Response:
        """Its object."""
        return json_response(await self._find(request))

    async def update(self, request: Request) -> Response:
        """New metadata in place of the old."""
        metadata = await read_request(request, METADATA_UPDATE, read_new_metadata, self.pool)
        reply = msgspec.structs.replace(await self._find(request), metadata=metadata)
        if not await self.state.conversations.replace(_tenant(request), reply.id, msgspec.json.encode(reply)):
            raise ApiError(not_found("Conversation", reply.id))
        return json_response(reply)

    async def delete(self, request: Request) -> Response:
        """Forget it; responses that belong to it keep what they were made from."""
        id = _id(request)
        if not await self.state.conversations.delete(_tenant(request), id):
            raise ApiError(not_found("Conversation", id))
        return json_response(DeletedReply(id, "conversation.deleted"))

    async def add_items(self, request: Request) -> Response:
        """Add items at its end: those that were added."""
        query_words(request, "include", INCLUDABLE)
        items = await read_request(request, CONVERSATION_ITEMS, read_new_items, self.pool)
        await self._refuse_known(request, items)
        kept = [kept_of(item) for item in items]
        if not await self.state.conversations.append(_tenant(request), _id(request), kept):
            raise ApiError(not_found("Conversation", _id(request)))
        return list_response(Page([(item.id, item.body) for item in kept], has_more=False))

    async def list_items(self, request: Request) -> Response:
        """Its items, the newest first."""
        query_words(request, "include", INCLUDABLE)
        try:
            page = await self.state.conversations.page(_tenant(request), _id(request), read_page(request))
        except CursorError as error:
            raise wrong_cursor(error, request) from None
        if page is None:
            raise ApiError(not_found("Conversation", _id(request)))
        return list_response(Page([(item.id, item.body) for item in page.elements], page.has_more))

    async def get_item(self, request: Request) -> Response:
        """One of its items."""
        query_words(request, "include", INCLUDABLE)
        item_id = request.path_params["item_id"]
        item = await self.state.conversations.find_item(_tenant(request), _id(request), item_id)
        if item is None:
            raise ApiError(not_found("Item", item_id))
        return Response(item.body, media_type="application/json")

    async def delete_item(self, request: Request) -> Response:
        """Take one item out: the conversation."""
        reply, item_id = await self._find(request), request.path_params["item_id"]
        if not await self.state.conversations.delete_item(_tenant(request), reply.id, item_id):
            raise ApiError(not_found("Item", item_id))
        return json_response(reply)

    async def _find(self, request: Request) -> ConversationReply:
        record = await self.state.conversations.find(_tenant(request), _id(request))
        if record is None:
            raise ApiError(not_found("Conversation", _id(request)))
        return msgspec.json.decode(record.body, type=ConversationReply)

    async def _refuse_known(self, request: Request, items: tuple[Item, ...]) -> None:
        """In one list an id names one item."""
        for index, item in enumerate(items):
            is_known = await self.state.conversations.find_item(_tenant(request), _id(request), item.id)
            if is_known or item.id in [other.id for other in items[:index]]:
                message = f"Invalid 'items[{index}].id': an item with the id '{item.id}' is in this conversation."
                raise bad_request(message, param=f"items[{index}].id", code="invalid_value")


def _id(request: Request) -> str:
    return str(request.path_params["id"])


def _tenant(request: Request) -> bytes:
    return exchange_of(request.scope).tenant
