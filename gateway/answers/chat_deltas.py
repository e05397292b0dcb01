"""Reasoning and calls as deltas of chat chunks: what each may hold, and what it must not repeat. Knows no frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ortserve.gateway.replies.reply import CallDelta

JsonObject = dict[str, object]


@dataclass(frozen=True, slots=True)
class ChatDeltas:
    """In the words of tools, or of functions as before there were tools."""

    is_legacy: bool
    includes_reasoning: bool

    def of_reasoning(self, text: str) -> Iterator[JsonObject]:
        """Under both names that clients read."""
        if self.includes_reasoning:
            yield {"reasoning_content": text, "reasoning": text}

    def of_calls(self, calls: Sequence[CallDelta]) -> Iterator[JsonObject]:
        """One delta each: helpers take a delta's calls for a list that they may index by place."""
        for call in calls:
            yield {"function_call": _function(call)} if self.is_legacy else {"tool_calls": [_tool_call(call)]}


def _tool_call(call: CallDelta) -> JsonObject:
    """Id, type and name in the first delta only: clients join what is repeated."""
    inner: JsonObject = {"input": call.arguments} if call.is_custom else {"arguments": call.arguments}
    kind = "custom" if call.is_custom else "function"
    if call.name is None:
        return {"index": call.index, kind: inner}
    return {"index": call.index, "id": call.id, "type": kind, kind: {"name": call.name, **inner}}


def _function(call: CallDelta) -> JsonObject:
    arguments: JsonObject = {"arguments": call.arguments}
    return arguments if call.name is None else {"name": call.name, **arguments}
