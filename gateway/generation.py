"""The choices of one API call as they are generated: pieces in arrival order, finish reasons, usage, cancellation.

Knows no HTTP and no wire format. The engine is reached only through one token stream per choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

from ortserve.gateway.errors import ApiError, internal_error, unavailable
from ortserve.gateway.judged import JudgedPrompt
from ortserve.gateway.pieces import Piece, ShownToken, TextAssembler
from ortserve.gateway.reply import CallDelta, ReplyPart, ReplyReader, WholeCall, join_calls
from ortserve.gateway.tally import TOKEN_SECONDS, Tally
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


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one API call: each prompt counted once, outputs summed over choices."""

    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompts, not computed for this call
    num_cache_write_tokens: int  # of the prompts, computed and kept for later calls
    num_output_tokens: int
    num_accepted_tokens: int  # of drafts, part of the output
    num_rejected_tokens: int  # of drafts, computed for nothing
    num_reasoning_tokens: int = 0  # part of the output, up to the answer


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, for metrics: each sequence's time in the queue, and between two tokens of a sequence."""

    queue_s: tuple[float, ...]
    intervals: Tally


@dataclass(frozen=True, slots=True)
class WholeChoice:
    """A finished choice: all its pieces joined."""

    index: int
    text: str
    tokens: tuple[ShownToken, ...]
    finish: FinishWord
    stop: str | None = None
    reasoning: str = ""
    calls: tuple[WholeCall, ...] = ()
    prompt: tuple[ShownToken, ...] = ()  # how likely it was, when asked for


class TokenStream(Protocol):
    """The deltas of one sequence; the last one carries `finish`. The runtime's DeltaStream is one."""

    def __aiter__(self) -> AsyncIterator[Delta]:
        """The stream itself."""

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
        judged = self._read_prompt(delta)
        return (*judged, *self._read_reply(delta))

    def _read_prompt(self, delta: Delta) -> Sequence[ChoicePiece]:
        """The whole prompt, once."""
        prompt = self._prompt
        if prompt is None:
            return ()
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
        if delta.finish is FinishReason.ERROR:
            raise ApiError(internal_error(f"The engine failed while running this request: {delta.error}."))
        if delta.finish is FinishReason.CANCELLED:
            raise ApiError(unavailable("The server is shutting down and has cancelled this request."))
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


class Generation:
    """All choices of one call. Close it in a `finally`: what still runs is cancelled."""

    def __init__(self, choices: Sequence[Choice], prompt_lengths: Sequence[int]) -> None:
        self._choices = tuple(choices)
        self._prompt_lengths = tuple(prompt_lengths)
        self._intervals = Tally(TOKEN_SECONDS)
        self.first_token_at: float | None = None  # monotonic clock, seconds

    @property
    def num_choices(self) -> int:
        """Choices of all prompts."""
        return len(self._choices)

    async def batches(self) -> AsyncGenerator[Sequence[ChoicePiece], None]:
        """Pieces as they come, those of one engine step together. Ends when every choice has finished."""
        if len(self._choices) == 1:
            async for pieces in self._pieces(self._choices[0]):
                yield pieces
            return
        async for batch in self._merged():
            yield batch

    async def settle(self) -> None:
        """Wait for the counts of choices that stop strings have ended; all others have theirs already."""
        for choice in self._choices:
            await choice.settle()

    def usage(self) -> TokenUsage:
        """Counts so far; exact once every choice has ended and `settle` has been awaited."""
        per_prompt = max(len(self._choices) // max(len(self._prompt_lengths), 1), 1)
        num_cached = num_written = 0
        for place, length in enumerate(self._prompt_lengths):
            own = self._choices[place * per_prompt : (place + 1) * per_prompt]
            usages = [choice.usage for choice in own if choice.usage is not None]
            # Choices take the prompt over from the one that computed it: that one says what was cached before.
            cached = min((usage.num_cached_tokens for usage in usages), default=0)
            written = max((usage.num_cache_write_tokens for usage in usages), default=0)
            num_cached += cached
            num_written += min(written, length - cached)
        return TokenUsage(
            num_prompt_tokens=sum(self._prompt_lengths),
            num_cached_tokens=num_cached,
            num_cache_write_tokens=num_written,
            num_output_tokens=sum(choice.num_output_tokens for choice in self._choices),
            num_accepted_tokens=sum(choice.usage.num_accepted_tokens for choice in self._choices if choice.usage),
            num_rejected_tokens=sum(choice.usage.num_rejected_tokens for choice in self._choices if choice.usage),
            num_reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self._choices),
        )

    def timings(self) -> Timings:
        """What metrics want to know, so far."""
        queue_s = tuple(choice.usage.queue_s for choice in self._choices if choice.usage is not None)
        return Timings(queue_s, self._intervals)

    def close(self) -> None:
        """Cancel what has not finished. Safe to call again."""
        for choice in self._choices:
            choice.stream.close()

    async def _pieces(self, choice: Choice) -> AsyncGenerator[Sequence[ChoicePiece], None]:
        async for delta in choice.stream:
            self._note_time(choice, len(delta.token_ids))
            pieces = choice.read(delta)
            if pieces:
                yield pieces
                if choice.finish is not None:
                    return
        raise ApiError(internal_error("The engine ended the request without a reason."))

    def _note_time(self, choice: Choice, num_tokens: int) -> None:
        now = time.monotonic()
        if self.first_token_at is None:
            self.first_token_at = now
        if num_tokens:
            if choice.last_token_at:
                self._intervals.add((now - choice.last_token_at) / num_tokens, num_tokens)
            choice.last_token_at = now

    async def _merged(self) -> AsyncGenerator[Sequence[ChoicePiece], None]:
        """One task per choice; all of them wake in the same turn of the loop, so that their pieces come together."""
        ready: list[ChoicePiece] = []
        failures: list[Exception] = []
        wake = asyncio.Event()

        async def pump(choice: Choice) -> None:
            try:
                async for pieces in self._pieces(choice):
                    ready.extend(pieces)
                    wake.set()
            except Exception as error:
                failures.append(error)
                wake.set()

        tasks = [asyncio.create_task(pump(choice)) for choice in self._choices]
        num_running = len(tasks)
        try:
            while num_running:
                await wake.wait()
                wake.clear()
                if failures:
                    raise failures[0]
                batch = tuple(ready)
                ready.clear()
                num_running -= sum(piece.finish is not None for piece in batch)
                yield batch
        finally:
            for task in tasks:
                task.cancel()


async def collect(generation: Generation) -> list[WholeChoice]:
    """Wait for every choice and its counts. Raises `ApiError` as soon as one fails."""
    pieces: list[list[ChoicePiece]] = [[] for _ in range(generation.num_choices)]
    async with aclosing(generation.batches()) as batches:
        async for batch in batches:
            for piece in batch:
                pieces[piece.index].append(piece)
    await generation.settle()
    return [joined(index, own) for index, own in enumerate(pieces)]


def joined(index: int, pieces: Sequence[ChoicePiece]) -> WholeChoice:
    """All pieces of one choice that has ended."""
    last = pieces[-1]
    assert last.finish is not None
    return WholeChoice(
        index,
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.tokens),
        last.finish,
        last.stop,
        "".join(piece.reasoning for piece in pieces),
        join_calls([delta for piece in pieces for delta in piece.calls]),
        tuple(token for piece in pieces for token in piece.prompt),
    )
