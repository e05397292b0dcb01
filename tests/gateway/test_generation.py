"""The choices of a call: what waits already comes at once, in order, and nothing of it is lost."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from ortserve.gateway.errors import ApiError
from ortserve.gateway.replies.choice import Choice, ChoicePiece
from ortserve.gateway.replies.generation import Generation
from ortserve.gateway.replies.pieces import TextAssembler
from ortserve.runtime.drivers.async_engine import DeltaStream
from ortserve.runtime.request import Delta, FinishReason
from tests.gateway.scripted import make_tokenizer, usage_of
from tests.waiting import PATIENCE_S

TOKENIZER = make_tokenizer()


class Cancels:
    """The only thing a stream asks of its driver."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)


def delta(text: str, finish: FinishReason | None = None, **fields: Any) -> Delta:
    return Delta("r", TOKENIZER.encode(text, add_special_tokens=False), finish=finish, **fields)


def made(*stops: str) -> tuple[DeltaStream, Generation]:
    driver: Any = Cancels()
    stream = DeltaStream("r", driver)
    assembler = TextAssembler(TOKENIZER, stops, strip_first_space=False, with_logprobs=False)
    return stream, Generation([Choice(0, stream, assembler)], [1])


async def batches_of(generation: Generation) -> list[list[ChoicePiece]]:
    async with aclosing(generation.batches()) as batches:
        return [list(batch) async for batch in batches]


def test_what_waits_comes_in_one_batch_a_piece_per_step() -> None:
    stream, generation = made()

    async def main() -> None:
        for word in ("one", " two", " three"):
            stream.put(delta(word))
        reader = asyncio.create_task(batches_of(generation))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stream.put(delta(" four", FinishReason.LENGTH, usage=usage_of(1, 9)))
        batches = await reader
        assert [[piece.text for piece in batch] for batch in batches] == [["one", " two", " three"], [" four"]]
        assert batches[-1][-1].finish == "length"
        assert generation.usage().num_output_tokens == 9

    asyncio.run(main())


def test_what_came_before_a_failure_is_shown_before_it() -> None:
    stream, generation = made()

    async def main() -> None:
        stream.put(delta("one"))
        stream.put(Delta("r", (), finish=FinishReason.ERROR, error="the graph failed"))
        batches = generation.batches()
        assert [piece.text for piece in await anext(batches)] == ["one"]
        with pytest.raises(ApiError, match="the graph failed"):
            await anext(batches)

    asyncio.run(main())


def test_a_stop_string_leaves_the_counts_behind_it_to_be_found() -> None:
    stream, generation = made("two")

    async def main() -> None:
        stream.put(delta("one"))
        stream.put(delta(" two three"))
        stream.put(Delta("r", (), finish=FinishReason.CANCELLED, usage=usage_of(1, 30, num_cached_tokens=1)))
        (batch,) = await batches_of(generation)
        assert ("".join(piece.text for piece in batch), batch[-1].finish) == ("one ", "stop")
        async with asyncio.timeout(PATIENCE_S):
            await generation.settle()
        assert generation.usage().num_cached_tokens == 1

    asyncio.run(main())
