"""Server-sent events of a streamed message, in Anthropic's order. Knows no socket and no engine.

message_start, content_block_start, ping, content_block_delta ..., content_block_stop, message_delta, message_stop.
"""

from __future__ import annotations

import msgspec

from ortserve.gateway.anthropic_errors import anthropic_body
from ortserve.gateway.errors import Problem
from ortserve.gateway.generation import ChoicePiece, TokenUsage
from ortserve.gateway.schema.anthropic_replies import MessageReply, MessageUsage, message_usage, stop_reason

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
BLOCK_START = (
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
)
DELTA_BEFORE = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":'
)
DELTA_AFTER = b"}}\n\n"
BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class MessageEvents:
    """Events of one reply with one block of text."""

    __slots__ = ("_encode", "_last", "_model", "_num_prompt_tokens", "_reply_id", "include_usage", "ping")

    def __init__(self, *, reply_id: str, model: str, num_prompt_tokens: int) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._reply_id = reply_id
        self._model = model
        self._num_prompt_tokens = num_prompt_tokens
        self._last: ChoicePiece | None = None  # the piece that has ended the reply
        self.include_usage = True
        self.ping = PING

    def begin(self, num_choices: int) -> bytes:
        """The empty message and its only block. What of the prompt is cached the engine has not yet said."""
        assert num_choices == 1
        usage = MessageUsage(self._num_prompt_tokens, 0, 0, 0)
        message = MessageReply(self._reply_id, self._model, [], None, None, usage)
        return _event(b"message_start", b'"message":' + self._encode(message)) + BLOCK_START + PING

    def piece(self, piece: ChoicePiece) -> bytes:
        """Its text; the end of the block when it is the last one. Why it ended is told with the counts."""
        frames = DELTA_BEFORE + self._encode(piece.text) + DELTA_AFTER if piece.text else b""
        if piece.finish is None:
            return frames
        self._last = piece
        return frames + BLOCK_STOP

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
