"""Server-sent events of streamed replies, byte for byte in the order clients need. Knows no socket and no engine.

The constant parts of a chunk are encoded once per stream: a chunk costs the JSON of its text and two concatenations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from ortserve.gateway.answers.chat import chat_finish, chat_logprobs
from ortserve.gateway.answers.chat_deltas import ChatDeltas
from ortserve.gateway.answers.completions import completion_logprobs
from ortserve.gateway.answers.usage import usage_reply
from ortserve.gateway.errors import Problem
from ortserve.gateway.replies.choice import ChoicePiece, FinishWord
from ortserve.gateway.replies.generation import TokenUsage
from ortserve.gateway.schema.tools import NO_TOOLS, ToolUse

DONE = b"data: [DONE]\n\n"
# One comment line and no blank line: clients that treat a blank line as an event would fail on an empty one.
PING = b": ping\n"
NO_DELTA = b'},"logprobs":null,"finish_reason":null}]'


class ChunkWriter(Protocol):
    """Frames of one streamed reply."""

    @property
    def include_usage(self) -> bool:
        """The last frames show counts."""

    @property
    def ping(self) -> bytes:
        """What keeps a silent stream alive; asked for each time."""

    def begin(self, num_choices: int) -> bytes:
        """What the body begins with. Asked for once, before everything else."""

    def piece(self, piece: ChoicePiece) -> bytes:
        """Frames of one piece: its text, then in a frame of its own its finish."""

    def end(self, usage: TokenUsage) -> bytes:
        """The usage frame if asked for, and the terminator."""

    def failure(self, problem: Problem) -> bytes:
        """A failure after the first byte; the stream ends right after it, without the terminator."""


class _Envelope:
    """The parts around the choices, equal in all chunks of one stream."""

    __slots__ = ("_after", "_before", "_encode", "include_usage", "ping")

    def __init__(
        self,
        object_: str,
        *,
        reply_id: str,
        created: int,
        model: str,
        fingerprint: str,
        include_usage: bool,
        **extra: str,
    ) -> None:
        encode = msgspec.json.Encoder().encode
        fields = {
            "id": reply_id,
            "object": object_,
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
            **extra,
        }
        self._encode = encode
        self.include_usage = include_usage
        self.ping = PING
        self._before = b"data: " + encode(fields)[:-1] + b',"choices":'
        self._after = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def frame(self, choices: bytes) -> bytes:
        """One chunk; `choices` is a JSON array."""
        return self._before + choices + self._after

    def end(self, usage: TokenUsage) -> bytes:
        """The last frames."""
        if not self.include_usage:
            return DONE
        return self._before + b'[],"usage":' + self._encode(usage_reply(usage)) + b"}\n\n" + DONE

    def failure(self, problem: Problem) -> bytes:
        """The error's envelope instead of a chunk."""
        return b"data: " + problem.body() + b"\n\n"


class ChatChunks(_Envelope):
    """chat.completion.chunk frames: role once per choice, then reasoning, content and calls, then finish."""

    __slots__ = ("_content_after", "_content_before", "_deltas", "_tools")

    def __init__(
        self,
        *,
        reply_id: str,
        created: int,
        model: str,
        fingerprint: str,
        include_usage: bool,
        tools: ToolUse = NO_TOOLS,
        includes_reasoning: bool = True,
    ) -> None:
        super().__init__(
            "chat.completion.chunk",
            reply_id=reply_id,
            created=created,
            model=model,
            fingerprint=fingerprint,
            include_usage=include_usage,
            service_tier="default",
        )
        self._tools = tools
        self._deltas = ChatDeltas(is_legacy=tools.is_legacy, includes_reasoning=includes_reasoning)
        self._content_before: list[bytes] = []
        self._content_after = b"}" + NO_DELTA[1:] + self._after

    def begin(self, num_choices: int) -> bytes:
        """The role of every choice, in order: helpers index choices by first appearance."""
        delta = b'"delta":{"role":"assistant","content":"","refusal":null'
        frames = []
        for index in range(num_choices):
            self._content_before.append(self._before + b'[{"index":%d,"delta":{"content":' % index)
            frames.append(self.frame(b'[{"index":%d,' % index + delta + NO_DELTA))
        return b"".join(frames)

    def piece(self, piece: ChoicePiece) -> bytes:
        """Deltas without role; the finish in a chunk of its own."""
        frames = b""
        if piece.reasoning:
            frames += self._delta_frames(piece.index, self._deltas.of_reasoning(piece.reasoning))
        if piece.tokens:
            frames += self._content_before[piece.index] + self._encode(piece.text)
            frames += b'},"logprobs":' + self._encode(chat_logprobs(piece.tokens)) + b',"finish_reason":null}]'
            frames += self._after
        elif piece.text:
            frames += self._content_before[piece.index] + self._encode(piece.text) + self._content_after
        if piece.calls:
            frames += self._delta_frames(piece.index, self._deltas.of_calls(piece.calls))
        return frames if piece.finish is None else frames + self._finish(piece.index, piece.finish)

    def _delta_frames(self, index: int, deltas: Iterable[dict[str, object]]) -> bytes:
        return b"".join(
            self.frame(b'[{"index":%d,"delta":' % index + self._encode(delta)[:-1] + NO_DELTA) for delta in deltas
        )

    def _finish(self, index: int, finish: FinishWord) -> bytes:
        reason = chat_finish(finish, self._tools).encode()
        return self.frame(b'[{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b"}]' % (index, reason))


class CompletionChunks(_Envelope):
    """text_completion frames: text, then an empty text with the finish. `echoes` come first, one per choice."""

    __slots__ = ("_echoes", "_judges_prompt")

    def __init__(
        self,
        echoes: tuple[str, ...],
        *,
        reply_id: str,
        created: int,
        model: str,
        fingerprint: str,
        include_usage: bool,
        judges_prompt: bool = False,
    ) -> None:
        super().__init__(
            "text_completion",
            reply_id=reply_id,
            created=created,
            model=model,
            fingerprint=fingerprint,
            include_usage=include_usage,
        )
        self._echoes = echoes
        self._judges_prompt = judges_prompt

    def begin(self, num_choices: int) -> bytes:
        """Echoed prompts, when asked for."""
        assert num_choices == len(self._echoes)
        if self._judges_prompt:
            return b""  # each comes with its log-probabilities, once they are known
        return b"".join(self._text(index, echo, b"null") for index, echo in enumerate(self._echoes) if echo)

    def piece(self, piece: ChoicePiece) -> bytes:
        """Text and its log-probabilities; the finish in a chunk of its own."""
        frames, echo = b"", self._echoes[piece.index]
        if piece.prompt:
            logprobs = completion_logprobs((), offset=0, prompt=piece.prompt)
            frames = self._text(piece.index, echo, self._encode(logprobs))
        if piece.tokens:
            logprobs = completion_logprobs(piece.tokens, offset=len(echo))
            frames += self._text(piece.index, piece.text, self._encode(logprobs))
        elif piece.text:
            frames += self._text(piece.index, piece.text, b"null")
        return frames if piece.finish is None else frames + self.finish(piece.index, piece.finish)

    def finish(self, index: int, finish: FinishWord) -> bytes:
        """The last chunk of one choice."""
        reason = finish.encode()
        return self.frame(b'[{"index":%d,"text":"","logprobs":null,"finish_reason":"%b"}]' % (index, reason))

    def _text(self, index: int, text: str, logprobs: bytes) -> bytes:
        head = b'[{"index":%d,"text":' % index
        return self.frame(head + self._encode(text) + b',"logprobs":' + logprobs + b',"finish_reason":null}]')
