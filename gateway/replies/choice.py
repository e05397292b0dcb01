"""One sequence being generated and what its reply has become: pieces, finish reason, counts. Knows no HTTP.

The engine is reached only through a token stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

from ortserve.gateway.errors import ApiError, internal_error, unavailable
from ortserve.gateway.replies.judged import JudgedPrompt
from ortserve.gateway.replies.pieces import Piece, ShownToken, TextAssembler
from ortserve.gateway.replies.reply import CallDelta, ReplyPart, ReplyReader
from ortserve.runtime.request import Delta, FinishReason, Usage

FinishWord = Literal["stop", "length", "tool_calls"]
SETTLE_S = 2.0  # an engine that takes longer to end a request owes nobody its counts


@dataclass(frozen=True, slots=True)
class ChoicePiece:
    """What one engine step added to one choice: reasoning, then text, then calls. The last piece carries `finish`.

    `stop` is the stop string that ended it, None when the model itself or a limit did. `tokens` are those of the text.
    """

    index: int
    text: str
    tokens: tuple[ShownToken, ...]
    finish: FinishWord | None
    stop: str | None = None
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    prompt: tuple[ShownToken, ...] = ()  # all of it, once, before the first token


class TokenStream(Protocol):
    """The deltas of one sequence; the last one carries `finish`. The runtime's DeltaStream is one."""

    def __aiter__(self) -> AsyncIterator[Delta]:
        """The stream itself."""

    def take_waiting(self) -> Delta | None:
        """The next delta if it is there already; None otherwise, and after the last one."""

    def close(self) -> None:
        """Cancel what has not finished. Safe to call again."""


class NothingToGenerate:
    """The stream of a choice that asked for no tokens at all (echo with max_tokens 0): ends at once."""

    def __init__(self) -> None:
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """Part of `TokenStream`."""
        if self._ended:
            raise StopAsyncIteration
        self._ended = True
        return Delta("", (), finish=FinishReason.LENGTH)

    def take_waiting(self) -> Delta | None:
        """Part of `TokenStream`."""
        return None

    def close(self) -> None:
        """Part of `TokenStream`."""


class Choice:
    """One sequence being generated and its reply so far. Without a `reader` the reply is text and nothing else."""

    __slots__ = (
        "_assembler", "_is_cut", "_num_reasoning", "_prompt", "_reader", "finish", "index", "last_token_at", "stream",
        "usage",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        stream: TokenStream,
        assembler: TextAssembler,
        reader: ReplyReader | None = None,
        prompt: JudgedPrompt | None = None,
    ) -> None:
        """`prompt` collects the log-probabilities of the prompt, where they are wanted."""
        self.index = index
        self.stream = stream
        self._assembler = assembler
        self._reader = reader
        self._prompt = prompt  # until it is complete
        self._num_reasoning: int | None = None  # once the channel is closed
        self._is_cut = False  # here, by a stop string or after the only call: the engine may have drawn more
        self.usage: Usage | None = None  # the engine's counts, once it has ended the sequence
        self.finish: FinishWord | None = None
        self.last_token_at = 0.0  # monotonic clock, seconds; 0: none yet

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far; those after a stop string do not count."""
        if self._is_cut or self.usage is None:
            return self._assembler.num_tokens
        return self.usage.num_output_tokens  # includes the ending token

    @property
    def num_reasoning_tokens(self) -> int:
        """Those before the answer, the channel's markers among them."""
        if self._num_reasoning is not None:
            return self._num_reasoning
        return self._assembler.num_tokens if self._reader is not None and self._reader.is_thinking else 0

    def read(self, delta: Delta) -> Sequence[ChoicePiece]:
        """The pieces of one delta, none when nothing can be shown yet. Raises `ApiError` when the engine gave up."""
        if self._prompt is None:
            return self._read_reply(delta)
        return (*self._read_prompt(self._prompt, delta), *self._read_reply(delta))

    def _read_prompt(self, prompt: JudgedPrompt, delta: Delta) -> Sequence[ChoicePiece]:
        """The whole prompt, once."""
        prompt.add(delta.prompt_logprobs)
        if not prompt.is_complete:
            return ()
        self._prompt = None
        return (ChoicePiece(self.index, "", (), None, prompt=tuple(prompt.tokens)),)

    def _read_reply(self, delta: Delta) -> Sequence[ChoicePiece]:
        assembler = self._assembler
        piece = assembler.feed(delta.token_ids, delta.logprobs) if delta.token_ids else Piece("")
        if piece.stopped:
            self._cut(delta)
            return self._ended(piece, "stop")
        if delta.finish is None:
            return self._shown(piece, delta)
        if delta.is_lost:
            raise ApiError(unavailable(f"This request is lost: {delta.error}. Please send it again."))
        if delta.finish is FinishReason.ERROR:
            raise ApiError(internal_error(f"The engine failed while running this request: {delta.error}."))
        if delta.finish is FinishReason.CANCELLED:
            raise ApiError(unavailable("This request was cancelled: the server is shutting down or unloads the model."))
        self.usage = delta.usage
        rest = assembler.finish()
        whole = Piece(piece.text + rest.text, piece.tokens + rest.tokens)
        return self._ended(whole, "stop" if delta.finish is FinishReason.STOP else "length")

    async def settle(self) -> None:
        """Wait until the engine has ended a sequence that a stop string has cut."""
        if self._is_cut and self.usage is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    async for delta in self.stream:
                        self.usage = delta.usage

    def _cut(self, delta: Delta) -> None:
        self._is_cut = True
        self.usage = delta.usage
        self.stream.close()

    def _shown(self, piece: Piece, delta: Delta) -> Sequence[ChoicePiece]:
        if self._reader is None:
            if piece.text or piece.tokens:
                return (ChoicePiece(self.index, piece.text, piece.tokens, None),)
            return ()
        parts = self._reader.feed(piece.text, piece.tokens)
        self._count_reasoning(self._reader)
        if self._reader.is_done:
            self._cut(delta)
            self.finish = "tool_calls"
            return self._pieces(parts, "tool_calls", None)
        return self._pieces(parts, None, None)

    def _ended(self, piece: Piece, finish: FinishWord) -> Sequence[ChoicePiece]:
        reader = self._reader
        if reader is None:
            self.finish = finish
            return (ChoicePiece(self.index, piece.text, piece.tokens, finish, piece.stop),)
        parts = reader.feed(piece.text, piece.tokens)
        is_whole = not (reader.is_in_call and piece.stopped)
        parts += reader.finish()
        self._count_reasoning(reader)
        if finish == "stop" and reader.num_calls and is_whole:
            finish = "tool_calls"
        self.finish = finish
        return self._pieces(parts, finish, piece.stop)

    def _count_reasoning(self, reader: ReplyReader) -> None:
        if self._num_reasoning is None and reader.thought_end is not None:
            self._num_reasoning = self._assembler.num_tokens_before(reader.thought_end)

    def _pieces(self, parts: Sequence[ReplyPart], finish: FinishWord | None, stop: str | None) -> Sequence[ChoicePiece]:
        pieces = [
            ChoicePiece(self.index, part.text, part.tokens, None, None, part.reasoning, part.calls) for part in parts
        ]
        if finish is not None:
            last = pieces.pop() if pieces else ChoicePiece(self.index, "", (), None)
            pieces.append(replace(last, finish=finish, stop=stop))
        return pieces
