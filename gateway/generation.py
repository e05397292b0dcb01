"""The choices of one API call as they are generated: pieces in arrival order, finish reasons, usage, cancellation.

Knows no HTTP and no wire format. The engine is reached only through one token stream per choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from ortserve.gateway.errors import ApiError, internal_error, unavailable
from ortserve.gateway.pieces import Piece, ShownToken, TextAssembler
from ortserve.gateway.tally import TOKEN_SECONDS, Tally
from ortserve.runtime.request import Delta, FinishReason, Usage

FinishWord = Literal["stop", "length"]
SETTLE_S = 2.0  # an engine that takes longer to end a request owes nobody its counts


@dataclass(frozen=True, slots=True)
class ChoicePiece:
    """What one engine step added to one choice. The last piece of a choice carries `finish`.

    `stop` is the stop string that ended it, None when the model itself or a limit did.
    """

    index: int
    text: str
    tokens: tuple[ShownToken, ...]
    finish: FinishWord | None
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one API call: each prompt counted once, outputs summed over choices."""

    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompts, not computed for this call
    num_cache_write_tokens: int  # of the prompts, computed and kept for later calls
    num_output_tokens: int
    num_accepted_tokens: int  # of drafts, part of the output
    num_rejected_tokens: int  # of drafts, computed for nothing


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
    """One sequence being generated and its text so far."""

    __slots__ = ("_assembler", "_is_cut", "finish", "index", "last_token_at", "stream", "usage")

    def __init__(self, index: int, stream: TokenStream, assembler: TextAssembler) -> None:
        self.index = index
        self.stream = stream
        self._assembler = assembler
        self._is_cut = False  # by a stop string: the engine may have drawn more
        self.usage: Usage | None = None  # the engine's counts, once it has ended the sequence
        self.finish: FinishWord | None = None
        self.last_token_at = 0.0  # monotonic clock, seconds; 0: none yet

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far; those after a stop string do not count."""
        if self._is_cut or self.usage is None:
            return self._assembler.num_tokens
        return self.usage.num_output_tokens  # includes the ending token

    def read(self, delta: Delta) -> ChoicePiece | None:
        """The piece of one delta, None when nothing can be shown yet. Raises `ApiError` when the engine gave up."""
        assembler = self._assembler
        piece = assembler.feed(delta.token_ids, delta.logprobs) if delta.token_ids else Piece("")
        if piece.stopped:
            self._is_cut = True
            self.usage = delta.usage
            self.stream.close()
            return self._ended(piece, "stop")
        if delta.finish is None:
            return ChoicePiece(self.index, piece.text, piece.tokens, None) if piece.text or piece.tokens else None
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

    def _ended(self, piece: Piece, finish: FinishWord) -> ChoicePiece:
        self.finish = finish
        return ChoicePiece(self.index, piece.text, piece.tokens, finish, piece.stop)


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
            async for piece in self._pieces(self._choices[0]):
                yield (piece,)
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
        )

    def timings(self) -> Timings:
        """What metrics want to know, so far."""
        queue_s = tuple(choice.usage.queue_s for choice in self._choices if choice.usage is not None)
        return Timings(queue_s, self._intervals)

    def close(self) -> None:
        """Cancel what has not finished. Safe to call again."""
        for choice in self._choices:
            choice.stream.close()

    async def _pieces(self, choice: Choice) -> AsyncGenerator[ChoicePiece, None]:
        async for delta in choice.stream:
            self._note_time(choice, len(delta.token_ids))
            piece = choice.read(delta)
            if piece is not None:
                yield piece
                if piece.finish is not None:
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
                async for piece in self._pieces(choice):
                    ready.append(piece)
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
    texts: list[list[str]] = [[] for _ in range(generation.num_choices)]
    tokens: list[list[ShownToken]] = [[] for _ in texts]
    finishes: list[FinishWord] = ["length" for _ in texts]
    stops: list[str | None] = [None for _ in texts]
    async with aclosing(generation.batches()) as batches:
        async for batch in batches:
            for piece in batch:
                texts[piece.index].append(piece.text)
                tokens[piece.index].extend(piece.tokens)
                if piece.finish is not None:
                    finishes[piece.index], stops[piece.index] = piece.finish, piece.stop
    await generation.settle()
    return [
        WholeChoice(index, "".join(texts[index]), tuple(tokens[index]), finishes[index], stops[index])
        for index in range(generation.num_choices)
    ]
