"""Server-sent events of a streamed response, in OpenAI's order. Knows no socket and no engine.

created, (queued,) in_progress; for each item output_item.added, its parts and deltas, output_item.done; and one of
completed, incomplete and failed. Every event has the next number.
"""

from __future__ import annotations

import msgspec

from ortserve.gateway.answers.responses import OutputItem, OutputText, ResponseReply, text_logprobs
from ortserve.gateway.errors import Problem
from ortserve.gateway.replies.choice import ChoicePiece
from ortserve.gateway.replies.generation import TokenUsage
from ortserve.gateway.responses.draft import Change, ResponseDraft
from ortserve.gateway.responses.items import ItemDraft, ItemKind

# What an item's text is called: its events, and the field of the last of them that has all of it.
TEXTS: dict[ItemKind, tuple[bytes, bytes]] = {
    "message": (b"response.output_text", b"text"),
    "reasoning": (b"response.reasoning_text", b"text"),
    "function_call": (b"response.function_call_arguments", b"arguments"),
    "custom_tool_call": (b"response.custom_tool_call_input", b"input"),
}


class ResponseEvents:
    """Events of one response."""

    __slots__ = ("_draft", "_encode", "_places", "_sequence_number", "include_usage")

    def __init__(self, draft: ResponseDraft) -> None:
        self._draft = draft
        self._encode = msgspec.json.Encoder().encode
        self._sequence_number = 0
        self._places: list[bytes] = []  # of each item's text in the response
        self.include_usage = True

    @property
    def ping(self) -> bytes:
        """An event, because clients such as Codex do not count comments as a sign of life."""
        return self._response(b"response.in_progress", self._draft.reply)

    def begin(self, num_choices: int) -> bytes:
        """The response without output; one of the background waits in the queue for its first token."""
        assert num_choices == 1
        reply = self._draft.reply
        frames = self._response(b"response.created", reply)
        name = b"response.queued" if reply.status == "queued" else b"response.in_progress"
        return frames + self._response(name, reply)

    def piece(self, piece: ChoicePiece) -> bytes:
        """What it begins, adds and ends."""
        frames = b""
        if self._draft.reply.status == "queued":
            frames = self._response(b"response.in_progress", self._draft.run())
        changes = self._draft.add(piece)
        if len(changes) == 1 and changes[0].kind == "grown":
            return frames + self._grow(changes[0])
        return frames + b"".join(map(self._change, changes))

    def end(self, usage: TokenUsage) -> bytes:
        """The whole response."""
        reply = self._draft.complete(usage)
        return self._last(reply.status.encode(), reply)

    def failure(self, problem: Problem) -> bytes:
        """What there is of it, and why there is no more."""
        return self._last(b"failed", self._draft.fail(problem))

    def cancelled(self, usage: TokenUsage) -> bytes:
        """The API has no event of this name: an incomplete response whose status says it."""
        return self._last(b"incomplete", self._draft.cancel(usage))

    def _change(self, change: Change) -> bytes:
        if change.kind == "grown":
            return self._grow(change)
        return self._begin(change) if change.kind == "begun" else self._end(change)

    def _begin(self, change: Change) -> bytes:
        item = change.item
        place = b'"item_id":"%b","output_index":%d' % (item.id.encode(), change.place)
        frames = self._item(b"response.output_item.added", change.place, item.begun())
        if _has_parts(item):
            place += b',"content_index":0'
            part = b',"part":' + self._encode(item.empty_part())
            frames += self._event(b"response.content_part.added", place + part)
        self._places.append(place)
        return frames

    def _grow(self, change: Change) -> bytes:
        fields = self._places[change.place] + b',"delta":' + self._encode(change.text)
        if change.item.kind == "message":
            logprobs = self._encode(text_logprobs(change.tokens)) if change.tokens else b"[]"
            fields += b',"logprobs":' + logprobs
        return self._event(TEXTS[change.item.kind][0] + b".delta", fields)

    def _end(self, change: Change) -> bytes:
        item, place = change.item, self._places[change.place]
        name, field = TEXTS[item.kind]
        fields = place + b',"%b":' % field + self._encode(item.text)
        if item.kind == "function_call":
            fields += b',"name":' + self._encode(item.name)
        part = item.part()
        if item.kind == "message" and isinstance(part, OutputText):
            fields += b',"logprobs":' + self._encode(part.logprobs)
        frames = self._event(name + b".done", fields)
        if _has_parts(item):
            frames += self._event(b"response.content_part.done", place + b',"part":' + self._encode(part))
        return frames + self._item(b"response.output_item.done", change.place, item.item())

    def _item(self, name: bytes, place: int, item: OutputItem) -> bytes:
        return self._event(name, b'"output_index":%d,"item":' % place + self._encode(item))

    def _last(self, name: bytes, reply: ResponseReply) -> bytes:
        """The number stays: what cannot be kept is failed after all, in the place of what was not sent."""
        frames = self._response(b"response." + name, reply)
        self._sequence_number -= 1
        return frames

    def _response(self, name: bytes, reply: ResponseReply) -> bytes:
        return self._event(name, b'"response":' + self._encode(reply))

    def _event(self, name: bytes, fields: bytes) -> bytes:
        number = self._sequence_number
        self._sequence_number += 1
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (name, name, number, fields)


def _has_parts(item: ItemDraft) -> bool:
    return item.kind in ("message", "reasoning")
