"""Server-sent events of a streamed response, in OpenAI's order. Knows no socket and no engine.

created, (queued,) in_progress, output_item.added, content_part.added, output_text.delta ..., output_text.done,
content_part.done, output_item.done, and one of completed, incomplete and failed. Every event has the next number.
"""

from __future__ import annotations

import msgspec

from ortserve.gateway.errors import Problem
from ortserve.gateway.generation import ChoicePiece, TokenUsage
from ortserve.gateway.response_draft import ResponseDraft
from ortserve.gateway.schema.response_replies import OutputMessage, OutputText, ResponseReply, text_logprobs

DELTA = b"response.output_text.delta"


class ResponseEvents:
    """Events of one response with one message."""

    __slots__ = ("_draft", "_encode", "_place", "_sequence_number", "include_usage")

    def __init__(self, draft: ResponseDraft) -> None:
        self._draft = draft
        self._encode = msgspec.json.Encoder().encode
        self._sequence_number = 0
        self._place = b""  # of the text in the response, once the message has begun
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
        """What it adds; with the last piece, the end of the message."""
        frames = b""
        if self._draft.reply.status == "queued":
            frames = self._response(b"response.in_progress", self._draft.run())
        if not self._place:
            frames += self._begin_message()
        self._draft.add(piece)
        if piece.text or piece.tokens:
            logprobs = self._encode(text_logprobs(piece.tokens)) if piece.tokens else b"[]"
            delta = self._place + b',"delta":' + self._encode(piece.text) + b',"logprobs":' + logprobs
            frames += self._event(DELTA, delta)
        return frames if piece.finish is None else frames + self._end_message()

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

    def _begin_message(self) -> bytes:
        id_ = self._draft.begin_message()
        self._place = b'"item_id":"%b","output_index":0,"content_index":0' % id_.encode()
        item = self._encode(OutputMessage(id_, "in_progress", []))
        return self._event(b"response.output_item.added", b'"output_index":0,"item":' + item) + self._event(
            b"response.content_part.added", self._place + b',"part":' + self._encode(OutputText(""))
        )

    def _end_message(self) -> bytes:
        part = self._draft.part()
        text = b',"text":' + self._encode(part.text) + b',"logprobs":' + self._encode(part.logprobs)
        item = self._encode(self._draft.message(self._draft.item_status))
        return (
            self._event(b"response.output_text.done", self._place + text)
            + self._event(b"response.content_part.done", self._place + b',"part":' + self._encode(part))
            + self._event(b"response.output_item.done", b'"output_index":0,"item":' + item)
        )

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
