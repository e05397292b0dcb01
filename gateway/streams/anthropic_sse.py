"""Server-sent events of a streamed message, in Anthropic's order. Knows no socket and no engine.

message_start, content_block_start, ping, content_block_delta ..., content_block_stop, message_delta, message_stop.
"""

from __future__ import annotations

import msgspec

from ortserve.gateway.answers.anthropic import (
    Block,
    MessageReply,
    MessageUsage,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    message_usage,
    stop_reason,
)
from ortserve.gateway.errors import Problem
from ortserve.gateway.http.anthropic_errors import anthropic_body
from ortserve.gateway.replies.choice import ChoicePiece
from ortserve.gateway.replies.generation import TokenUsage
from ortserve.gateway.replies.reply import CallDelta

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
EMPTY_TEXT = TextBlock("")
DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


class MessageEvents:
    """Events of one reply: its blocks one after another, each closed before the next begins."""

    __slots__ = (
        "_encode", "_includes_reasoning", "_last", "_model", "_num_blocks", "_num_prompt_tokens", "_open", "_reply_id",
        "include_usage", "ping",
    )  # fmt: skip

    def __init__(self, *, reply_id: str, model: str, num_prompt_tokens: int, includes_reasoning: bool = False) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._reply_id = reply_id
        self._model = model
        self._num_prompt_tokens = num_prompt_tokens
        self._includes_reasoning = includes_reasoning
        self._num_blocks = 0
        self._open: str | None = None  # the type of the block that is open
        self._last: ChoicePiece | None = None  # the piece that has ended the reply
        self.include_usage = True
        self.ping = PING

    def begin(self, num_choices: int) -> bytes:
        """The empty message. What of the prompt is cached the engine has not yet said."""
        assert num_choices == 1
        usage = MessageUsage(self._num_prompt_tokens, 0, 0, 0)
        message = MessageReply(self._reply_id, self._model, [], None, None, usage)
        return _event(b"message_start", b'"message":' + self._encode(message))

    def piece(self, piece: ChoicePiece) -> bytes:
        """Its parts; the end of the last block when it is the last one. Why it ended is told with the counts."""
        frames = b""
        if piece.reasoning and self._includes_reasoning:
            frames += self._text("thinking", ThinkingBlock(""), piece.reasoning)
        if piece.text:
            frames += self._text("text", EMPTY_TEXT, piece.text)
        for call in piece.calls:
            frames += self._call(call)
        if piece.finish is None:
            return frames
        self._last = piece
        if not self._num_blocks:
            frames += self._start("text", EMPTY_TEXT)
        return frames + self._stop()

    def _text(self, type_: str, empty: Block, text: str) -> bytes:
        frames = b"" if self._open == type_ else self._stop() + self._start(type_, empty)
        delta_type, key = DELTAS[type_]
        return frames + self._delta({"type": delta_type, key: text})

    def _call(self, call: CallDelta) -> bytes:
        if call.name is not None:
            return self._stop() + self._start("tool_use", ToolUseBlock(call.id or "", call.name, {}))
        return self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _start(self, type_: str, empty: Block) -> bytes:
        self._open = type_
        self._num_blocks += 1
        frame = _event(
            b"content_block_start", b'"index":%d,"content_block":%b' % (self._num_blocks - 1, self._encode(empty))
        )
        return frame + PING if self._num_blocks == 1 else frame

    def _delta(self, delta: dict[str, str]) -> bytes:
        return _event(b"content_block_delta", b'"index":%d,"delta":%b' % (self._num_blocks - 1, self._encode(delta)))

    def _stop(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event(b"content_block_stop", b'"index":%d' % (self._num_blocks - 1))

    def end(self, usage: TokenUsage) -> bytes:
        """The reason and the counts, which take the place of those at the start."""
        last = self._last
        assert last is not None
        assert last.finish is not None
        delta = {"stop_reason": stop_reason(last.finish, last.stop), "stop_sequence": last.stop}
        body = b'"delta":' + self._encode(delta) + b',"usage":' + self._encode(message_usage(usage))
        return _event(b"message_delta", body) + MESSAGE_STOP

    def failure(self, problem: Problem) -> bytes:
        """An error event; none follows."""
        return b"event: error\ndata: " + anthropic_body(problem) + b"\n\n"


def _event(name: bytes, fields: bytes) -> bytes:
    return b'event: %b\ndata: {"type":"%b",%b}\n\n' % (name, name, fields)
