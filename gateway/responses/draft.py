"""One response while it is made: its items in order, and its object at any time. Knows no event and no store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

import msgspec

from ortserve.gateway.answers.responses import (
    IncompleteDetails,
    ItemStatus,
    OutputItem,
    ResponseReply,
    ResponseStatus,
    response_error,
    response_usage,
)
from ortserve.gateway.errors import Problem
from ortserve.gateway.ids import new_id
from ortserve.gateway.replies.choice import ChoicePiece, FinishWord
from ortserve.gateway.replies.generation import Generation, TokenUsage
from ortserve.gateway.replies.pieces import ShownToken
from ortserve.gateway.replies.reply import CallDelta
from ortserve.gateway.responses.items import ItemDraft, ItemKind
from ortserve.gateway.schema.response_echo import RequestEcho


@dataclass(frozen=True, slots=True)
class Change:
    """What a piece does to the item at `place` of the output: it begins, grows by `text`, or ends."""

    kind: Literal["begun", "grown", "ended"]
    place: int
    item: ItemDraft
    text: str = ""
    tokens: tuple[ShownToken, ...] = ()


class ResponseDraft:
    """The one mutable record of a response. Ids never change, so that events, reply and store agree."""

    def __init__(
        self,
        echo: RequestEcho,
        *,
        model: str,
        created_at: int,
        namespaces: Mapping[str, str] | None = None,
    ) -> None:
        """`namespaces` of tools by the names that the model writes."""
        self._namespaces = namespaces or {}
        self._items: list[ItemDraft] = []
        self._open: ItemDraft | None = None
        self._finish: FinishWord | None = None
        self.reply = ResponseReply(
            id=new_id("resp"),
            created_at=created_at,
            model=model,
            status="queued" if echo.background else "in_progress",
            **msgspec.structs.asdict(echo),
        )

    def run(self) -> ResponseReply:
        """It is being worked on."""
        self.reply = msgspec.structs.replace(self.reply, status="in_progress")
        return self.reply

    def add(self, piece: ChoicePiece) -> list[Change]:
        """Take over what one engine step said: what that changes, in order."""
        changes: list[Change] = []
        if piece.reasoning:
            self._grow("reasoning", piece.reasoning, (), changes)
        if piece.text or piece.tokens:
            self._grow("message", piece.text, piece.tokens, changes)
        for call in piece.calls:
            self._grow_call(call, changes)
        if piece.finish is not None:
            self._finish = piece.finish
            if not self._items:  # an empty reply is a message all the same
                self._begin(ItemDraft("message"), changes)
            self._end_open(changes, "incomplete" if piece.finish == "length" else "completed")
        return changes

    async def take(self, generation: Generation) -> ResponseReply:
        """All of a generation; the object when it has ended. Raises `ApiError`."""
        async with aclosing(generation.batches()) as batches:
            async for batch in batches:
                for piece in batch:
                    self.add(piece)
        await generation.settle()
        return self.complete(generation.usage())

    def complete(self, usage: TokenUsage) -> ResponseReply:
        """It has ended as the model or the limit wanted."""
        is_whole = self._finish != "length"
        return self._end(
            "completed" if is_whole else "incomplete",
            output=self._output(),
            usage=response_usage(usage),
            completed_at=int(time.time()) if is_whole else None,
            incomplete_details=None if is_whole else IncompleteDetails("max_output_tokens"),
        )

    def fail(self, problem: Problem) -> ResponseReply:
        """It has ended for a reason of ours."""
        return self._end("failed", output=self._output(), error=response_error(problem))

    def cancel(self, usage: TokenUsage) -> ResponseReply:
        """Its owner wants no more of it."""
        return self._end("cancelled", output=self._output(), usage=response_usage(usage))

    def _grow(self, kind: ItemKind, text: str, tokens: tuple[ShownToken, ...], changes: list[Change]) -> None:
        if self._open is None or self._open.kind != kind:
            self._begin(ItemDraft(kind), changes)
        self._add(text, tokens, changes)

    def _grow_call(self, call: CallDelta, changes: list[Change]) -> None:
        if call.name is not None:
            kind: ItemKind = "custom_tool_call" if call.is_custom else "function_call"
            self._begin(ItemDraft(kind, call, self._namespaces.get(call.name)), changes)
        if call.arguments:
            self._add(call.arguments, (), changes)

    def _begin(self, item: ItemDraft, changes: list[Change]) -> None:
        self._end_open(changes, "completed")
        self._items.append(item)
        self._open = item
        changes.append(Change("begun", len(self._items) - 1, item))

    def _add(self, text: str, tokens: tuple[ShownToken, ...], changes: list[Change]) -> None:
        assert self._open is not None, "arguments without a call"
        self._open.add(text, tokens)
        changes.append(Change("grown", len(self._items) - 1, self._open, text, tokens))

    def _end_open(self, changes: list[Change], status: ItemStatus) -> None:
        if self._open is not None:
            self._open.status = status
            changes.append(Change("ended", len(self._items) - 1, self._open))
            self._open = None

    def _output(self) -> list[OutputItem]:
        self._end_open([], "incomplete")
        return [item.item() for item in self._items]

    def _end(self, status: ResponseStatus, **changes: object) -> ResponseReply:
        self.reply = msgspec.structs.replace(self.reply, status=status, **changes)
        return self.reply
