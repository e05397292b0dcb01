"""What a response goes on from: an earlier response or a conversation, and the call's own items. Knows no prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ortserve.gateway.errors import ApiError, not_found, previous_response_not_found, previous_response_running
from ortserve.gateway.ids import new_id
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.schema.items import Item
from ortserve.gateway.schema.responses import ResponseCall
from ortserve.gateway.store.items import KeptItem
from ortserve.gateway.store.responses import StillRunningError
from ortserve.gateway.store.state import State

INLINE_ITEMS = 128  # writing so many stays below 1 ms


@dataclass(frozen=True, slots=True)
class Thread:
    """Items in order: those that were there, and those that the call adds, both as they are kept."""

    context: tuple[KeptItem, ...]
    inputs: tuple[KeptItem, ...]

    @property
    def num_bytes(self) -> int:
        """Of all items as JSON."""
        return sum(len(item.body) for item in (*self.context, *self.inputs))

    def items(self) -> tuple[Item, ...]:
        """All of them, as messages are made of."""
        return tuple(item_of(kept) for kept in (*self.context, *self.inputs))


async def find_thread(state: State, tenant: bytes, call: ResponseCall, pool: WorkPool) -> Thread:
    """Look up what a call names. Raises `ApiError` (400 or 404) for what is not kept, or is another tenant's."""
    context = await _context(state, tenant, call)
    references = [item.id for item in call.input if item.is_reference]
    found = await state.responses.find_items(tenant, references) if references else ()
    if len(call.input) <= INLINE_ITEMS:
        return _joined(context, call, found)
    return await pool.run(lambda: _joined(context, call, found))


def _joined(context: tuple[KeptItem, ...], call: ResponseCall, references: Sequence[KeptItem | None]) -> Thread:
    found = iter(references)
    ids = {kept.id for kept in context}
    inputs: list[KeptItem] = []
    for index, item in enumerate(call.input):
        if item.is_reference:
            kept = next(found)
            if kept is None:
                raise ApiError(not_found("Item", item.id, param=f"input[{index}]"))
            if kept.id in ids:  # it is there already
                continue
        else:
            kept = kept_of(item if item.id not in ids else _renamed(item))
        ids.add(kept.id)
        inputs.append(kept)
    return Thread(context, tuple(inputs))


def kept_of(item: Item) -> KeptItem:
    """An item as it is kept."""
    return KeptItem(item.id, msgspec.json.encode(item.body))


def item_of(kept: KeptItem) -> Item:
    """A kept item as it was."""
    return Item(kept.id, msgspec.json.decode(kept.body))


def kept_outputs(output: Sequence[msgspec.Struct]) -> tuple[KeptItem, ...]:
    """A response's output as it is kept."""
    bodies = [msgspec.json.encode(item) for item in output]
    return tuple(KeptItem(msgspec.json.decode(body)["id"], body) for body in bodies)


async def _context(state: State, tenant: bytes, call: ResponseCall) -> tuple[KeptItem, ...]:
    previous, conversation = call.echo.previous_response_id, call.echo.conversation
    if previous is not None:
        try:
            context = await state.responses.listed(tenant, previous)
        except StillRunningError:
            raise ApiError(previous_response_running(previous)) from None
        if context is None:
            raise ApiError(previous_response_not_found(previous))
        return context
    if conversation is not None:
        context = await state.conversations.listed(tenant, conversation.id)
        if context is None:
            raise ApiError(not_found("Conversation", conversation.id, param="conversation"))
        return context
    return ()


def _renamed(item: Item) -> Item:
    """The same item under a new id: in one list an id names one item."""
    item_id = new_id("item")
    return Item(item_id, {**item.body, "id": item_id})
