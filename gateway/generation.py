"""The choices of one API call as they are generated: pieces in arrival order, finish reasons, usage, cancellation.

Knows no HTTP and no wire format. The engine is reached only through one token stream per choice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from ortserve.gateway.errors import ApiError, internal_error, unavailable
from ortserve.gateway.pieces import Piece, ShownToken, TextAssembler
from ortserve.runtime.request import Delta, FinishReason

FinishWord = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ChoicePiece:
    """What one engine step added to one choice. The last piece of a choice carries `finish`."""

    index: int
    text: str
    tokens: tuple[ShownToken, ...]
    finish: FinishWord | None


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one API call: each prompt counted once, outputs summed over choices."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class WholeChoice:
    """A finished choice: all its pieces joined."""

    index: int
    text: str
    tokens: tuple[ShownToken, ...]
    finish: FinishWord


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

    __slots__ = ("_assembler", "_num_output_tokens", "finish", "index", "num_cached_tokens", "stream")

    def __init__(self, index: int, stream: TokenStream, assembler: TextAssembler) -> None:
        self.index = index
        self.stream = stream
        self._assembler = assembler
        self._num_output_tokens: int | None = None  # the engine's count, which includes the ending token
        self.num_cached_tokens = 0
        self.finish: FinishWord | None = None

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far; those after a stop string do not count."""
        return self._assembler.num_tokens if self._num_output_tokens is None else self._num_output_tokens

    def read(self, delta: Delta) -> ChoicePiece | None:
        """The piece of one delta, None when nothing can be shown yet. Raises `ApiError` when the engine gave up."""
        assembler = self._assembler
        piece = assembler.feed(delta.token_ids, delta.logprobs) if delta.token_ids else Piece("")
        if piece.stopped:
            self.stream.close()
            return self._ended(piece, "stop")
        if delta.finish is None:
            return ChoicePiece(self.index, piece.text, piece.tokens, None) if piece.text or piece.tokens else None
        if delta.finish is FinishReason.ERROR:
            raise ApiError(internal_error(f"The engine failed while running this request: {delta.error}."))
        if delta.finish is FinishReason.CANCELLED:
            raise ApiError(unavailable("The server is shutting down and has cancelled this request."))
        if delta.usage is not None:
            self._num_output_tokens = delta.usage.num_output_tokens
            self.num_cached_tokens = delta.usage.num_cached_tokens
        rest = assembler.finish()
        whole = Piece(piece.text + rest.text, piece.tokens + rest.tokens)
        return self._ended(whole, "stop" if delta.finish is FinishReason.STOP else "length")

    def _ended(self, piece: Piece, finish: FinishWord) -> ChoicePiece:
        self.finish = finish
        return ChoicePiece(self.index, piece.text, piece.tokens, finish)


class Generation:
    """All choices of one call. Close it in a `finally`: what still runs is cancelled."""

    def __init__(self, choices: Sequence[Choice], prompt_lengths: Sequence[int]) -> None:
        self._choices = tuple(choices)
        self._prompt_lengths = tuple(prompt_lengths)
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

    def usage(self) -> TokenUsage:
        """Counts so far."""
        per_prompt = len(self._choices) // len(self._prompt_lengths) if self._prompt_lengths else 1
        return TokenUsage(
            num_prompt_tokens=sum(self._prompt_lengths),
            num_cached_tokens=sum(choice.num_cached_tokens for choice in self._choices[:: max(per_prompt, 1)]),
            num_output_tokens=sum(choice.num_output_tokens for choice in self._choices),
        )

    def close(self) -> None:
        """Cancel what has not finished. Safe to call again."""
        for choice in self._choices:
            choice.stream.close()

    async def _pieces(self, choice: Choice) -> AsyncGenerator[ChoicePiece, None]:
        async for delta in choice.stream:
            if self.first_token_at is None:
                self.first_token_at = time.monotonic()
            piece = choice.read(delta)
            if piece is not None:
                yield piece
                if piece.finish is not None:
                    return
        raise ApiError(internal_error("The engine ended the request without a reason."))

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
    """Wait for every choice. Raises `ApiError` as soon as one fails."""
    texts: list[list[str]] = [[] for _ in range(generation.num_choices)]
    tokens: list[list[ShownToken]] = [[] for _ in texts]
    finishes: list[FinishWord] = ["length" for _ in texts]
    async with aclosing(generation.batches()) as batches:
        async for batch in batches:
            for piece in batch:
                texts[piece.index].append(piece.text)
                tokens[piece.index].extend(piece.tokens)
                if piece.finish is not None:
                    finishes[piece.index] = piece.finish
    return [
        WholeChoice(index, "".join(texts[index]), tuple(tokens[index]), finishes[index])
        for index in range(generation.num_choices)
    ]
