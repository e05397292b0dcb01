"""The choices of one API call together: pieces in arrival order, usage, times, cancellation. Knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ortserve.gateway.errors import ApiError, internal_error
from ortserve.gateway.replies.choice import Choice, ChoicePiece, FinishWord
from ortserve.gateway.replies.pieces import ShownToken
from ortserve.gateway.replies.reply import WholeCall, join_calls
from ortserve.gateway.tally import TOKEN_SECONDS, Tally
from ortserve.runtime.request import Usage


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
class SequenceTimes:
    """When one sequence was submitted, in monotonic seconds, and what the engine tells of it since."""

    index: int
    submitted: float
    usage: Usage


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, for metrics: each sequence's time in the queue, and between two tokens of a sequence."""

    queue_s: tuple[float, ...]
    intervals: Tally
    sequences: tuple[SequenceTimes, ...] = ()


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


class Generation:
    """All choices of one call. Close it in a `finally`: what still runs is cancelled."""

    def __init__(self, choices: Sequence[Choice], prompt_lengths: Sequence[int]) -> None:
        self._choices = tuple(choices)
        self._prompt_lengths = tuple(prompt_lengths)
        self._intervals = Tally(TOKEN_SECONDS)
        self._submitted = time.monotonic()
        self.first_token_at: float | None = None  # monotonic clock, seconds

    @property
    def num_choices(self) -> int:
        """Choices of all prompts."""
        return len(self._choices)

    def batches(self) -> AsyncGenerator[Sequence[ChoicePiece], None]:
        """Pieces as they come, those of one engine step together, and those of later steps that wait already.

        Ends when every choice has finished. Raises `ApiError` when the engine gives up, after what came before.
        """
        return self._pieces(self._choices[0]) if len(self._choices) == 1 else self._merged()

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
        sequences = tuple(
            SequenceTimes(choice.index, self._submitted, choice.usage)
            for choice in self._choices
            if choice.usage is not None
        )
        return Timings(tuple(one.usage.queue_s for one in sequences), self._intervals, sequences)

    def close(self) -> None:
        """Cancel what has not finished. Safe to call again."""
        for choice in self._choices:
            choice.stream.close()

    async def _pieces(self, choice: Choice) -> AsyncGenerator[Sequence[ChoicePiece], None]:
        stream = choice.stream
        async for delta in stream:
            pieces = choice.read(delta)
            num_tokens, failure = len(delta.token_ids), None
            while choice.finish is None and (waiting := stream.take_waiting()) is not None:
                num_tokens += len(waiting.token_ids)
                try:
                    pieces = (*pieces, *choice.read(waiting))
                except ApiError as error:
                    failure = error
                    break
            self._note_time(choice, num_tokens)
            if pieces:
                yield pieces
                if choice.finish is not None:
                    return
            if failure is not None:
                raise failure
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
