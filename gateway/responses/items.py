"""One item of a response while it is made: a message, thoughts, or a call. Knows no event and no order."""

from __future__ import annotations

from typing import Literal

import msgspec

from ortserve.gateway.answers.responses import (
    CustomCall,
    FunctionCall,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    text_logprobs,
)
from ortserve.gateway.ids import new_id
from ortserve.gateway.replies.pieces import ShownToken
from ortserve.gateway.replies.reply import CallDelta

ItemKind = Literal["message", "reasoning", "function_call", "custom_tool_call"]
PREFIXES: dict[ItemKind, str] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
}


class ItemDraft:
    """An item's text so far. A call has the name its client knows the tool by."""

    __slots__ = ("_call_id", "_name", "_namespace", "_texts", "_tokens", "id", "kind", "status")

    def __init__(self, kind: ItemKind, call: CallDelta | None = None, namespace: str | None = None) -> None:
        self.kind = kind
        self.id = new_id(PREFIXES[kind])
        self.status: ItemStatus = "in_progress"
        self._texts: list[str] = []
        self._tokens: list[ShownToken] = []
        self._call_id = "" if call is None or call.id is None else call.id
        self._namespace = namespace
        name = "" if call is None or call.name is None else call.name
        self._name = name if namespace is None else name[len(namespace) + 1 :]

    @property
    def text(self) -> str:
        """The message, the thoughts, or the arguments."""
        return "".join(self._texts)

    @property
    def name(self) -> str:
        """Of the tool that is called."""
        return self._name

    def add(self, text: str, tokens: tuple[ShownToken, ...] = ()) -> None:
        """Some more of it."""
        self._texts.append(text)
        self._tokens.extend(tokens)

    def part(self) -> OutputText | ReasoningText:
        """The only part of a message or of thoughts."""
        if self.kind == "reasoning":
            return ReasoningText(self.text)
        return OutputText(self.text, text_logprobs(tuple(self._tokens)))

    def empty_part(self) -> OutputText | ReasoningText:
        """The part before its first text."""
        return ReasoningText("") if self.kind == "reasoning" else OutputText("")

    def begun(self) -> OutputItem:
        """The item before its first text, whatever has become of it."""
        return self._item("in_progress", "", [])

    def item(self) -> OutputItem:
        """The item as it stands."""
        return self._item(self.status, self.text, [self.part()])

    def _item(self, status: ItemStatus, text: str, parts: list[OutputText | ReasoningText]) -> OutputItem:
        if self.kind == "message":
            return OutputMessage(self.id, status, [part for part in parts if isinstance(part, OutputText)])
        if self.kind == "reasoning":
            return ReasoningItem(self.id, status, [part for part in parts if isinstance(part, ReasoningText)])
        call = FunctionCall if self.kind == "function_call" else CustomCall
        return call(self.id, self._call_id, self._name, text, status, self._namespace or msgspec.UNSET)
