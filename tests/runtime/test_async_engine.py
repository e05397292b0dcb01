"""The driver as an event loop sees it: one wake-up per step, streams in order, and closing cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ortserve.runtime.drivers.async_engine import AsyncEngine, DeltaStream
from ortserve.runtime.errors import EngineClosedError, RequestError
from ortserve.runtime.request import Delta, FinishReason, Request
from tests.runtime.driving import ENDLESS, Collector, Gate, driving, greedy, prompt_of
from tests.runtime.synthetic import SyntheticModel, greedy_tokens
from tests.waiting import PATIENCE_S


async def read(stream: DeltaStream) -> list[Delta]:
    return [delta async for delta in stream]


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def test_streams_of_one_loop_get_their_own_tokens_in_order(synthetic: SyntheticModel) -> None:
    async def main() -> None:
        engine = AsyncEngine(driver)
        requests = [greedy(f"r{number}", number, 15) for number in range(20)]
        streams = [engine.submit(request) for request in requests]
        replies = await asyncio.wait_for(asyncio.gather(*(read(stream) for stream in streams)), PATIENCE_S)
        for request, stream, deltas in zip(requests, streams, replies, strict=True):
            assert stream.is_finished
            assert tokens_of(deltas) == greedy_tokens(request.prompt, request.sampling)
            assert await read(stream) == [], "a stream that was read goes on"

    with driving(synthetic) as driver:
        asyncio.run(main())


def test_a_step_wakes_the_loop_once_however_many_streams_it_has(synthetic: SyntheticModel) -> None:
    async def main() -> None:
        engine = AsyncEngine(driver)
        loop = asyncio.get_running_loop()
        call, num_calls = loop.call_soon_threadsafe, 0

        def counting(callback: Callable[..., object], *arguments: Any, **options: Any) -> asyncio.Handle:
            nonlocal num_calls
            num_calls += 1
            return call(callback, *arguments, **options)

        loop.call_soon_threadsafe = counting  # type: ignore[method-assign, assignment]
        streams = [engine.submit(Request("r0", (1,), replace(ENDLESS, max_tokens=12)))]
        await asyncio.to_thread(gate.wait_until_held)
        streams += [engine.submit(Request(f"r{n}", (1, n), replace(ENDLESS, max_tokens=12))) for n in range(1, 4)]
        num_before = num_calls
        gate.open()
        replies = await asyncio.wait_for(asyncio.gather(*(read(stream) for stream in streams)), PATIENCE_S)
        assert [len(tokens_of(deltas)) for deltas in replies] == [12] * 4
        assert num_calls - num_before == 13  # r0 is one step ahead of the others

    with driving(synthetic) as driver:
        gate = Gate(driver)
        asyncio.run(main())


@pytest.mark.parametrize("num_read", [0, 3])
def test_closing_a_stream_cancels_its_request_and_what_has_come_can_be_read(
    synthetic: SyntheticModel, num_read: int
) -> None:
    async def main() -> None:
        engine = AsyncEngine(driver)
        gate = Gate(driver, num_free=num_read)
        stream = engine.submit(Request("r", prompt_of(3), ENDLESS))
        first = [await anext(stream) for _ in range(num_read)]
        stream.close()
        stream.close()
        gate.open()
        deltas = first + await asyncio.wait_for(read(stream), PATIENCE_S)
        assert deltas[-1].finish is FinishReason.CANCELLED
        expected = greedy_tokens(prompt_of(3), replace(ENDLESS, max_tokens=200))
        assert tokens_of(deltas) == expected[: len(tokens_of(deltas))]
        assert num_read <= len(tokens_of(deltas)) <= num_read + 1  # of the step that was held
        await asyncio.wait_for(read(engine.submit(greedy("next", 1))), PATIENCE_S)
        assert driver.stats().num_running == 0

    with driving(synthetic) as driver:
        asyncio.run(main())


def test_closing_a_finished_stream_sends_nothing(synthetic: SyntheticModel) -> None:
    async def main() -> None:
        engine = AsyncEngine(driver)
        stream = engine.submit(greedy("r", 1))
        await asyncio.wait_for(read(stream), PATIENCE_S)
        cancelled: list[str] = []
        driver.cancel = cancelled.append  # type: ignore[method-assign, assignment]
        stream.close()
        assert cancelled == []

    with driving(synthetic) as driver:
        asyncio.run(main())


def test_an_id_in_use_is_refused_and_its_stream_goes_on(synthetic: SyntheticModel) -> None:
    async def main() -> None:
        engine = AsyncEngine(driver)
        stream = engine.submit(greedy("same", 5))
        with pytest.raises(RequestError, match="'same' is in use"):
            engine.submit(greedy("same", 6))
        deltas = await asyncio.wait_for(read(stream), PATIENCE_S)
        assert tokens_of(deltas) == greedy_tokens(prompt_of(5), greedy("", 5).sampling)
        await asyncio.wait_for(read(engine.submit(greedy("same", 6))), PATIENCE_S)

    with driving(synthetic) as driver:
        asyncio.run(main())


def test_what_is_refused_leaves_no_stream_behind(synthetic: SyntheticModel) -> None:
    async def main() -> None:
        engine = AsyncEngine(driver)
        with pytest.raises(RequestError):
            engine.submit(Request("r", ()))
        assert engine._streams == {}
        driver.close()
        with pytest.raises(EngineClosedError):
            engine.submit(greedy("r", 1))
        assert engine._streams == {}

    with driving(synthetic) as driver:
        asyncio.run(main())


def test_a_loop_that_has_ended_has_its_requests_cancelled(synthetic: SyntheticModel) -> None:
    async def main() -> None:
        AsyncEngine(driver).submit(Request("abandoned", (1,), ENDLESS))
        await asyncio.to_thread(gate.wait_until_held)

    with driving(synthetic, max_rows=1) as driver:
        gate = Gate(driver)
        asyncio.run(main())
        gate.open()
        collector = Collector()
        driver.submit(greedy("next", 1), collector)  # needs the only row
        assert collector.wait_for("next")[-1].finish in (FinishReason.STOP, FinishReason.LENGTH)
        assert driver.stats().num_output_tokens < 150, "the abandoned request ran to its end"


def test_a_reader_whose_task_was_cancelled_can_be_followed_by_another(synthetic: SyntheticModel) -> None:
    async def main() -> None:
        engine = AsyncEngine(driver)
        stream = engine.submit(greedy("r", 4))
        await asyncio.to_thread(gate.wait_until_held)
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        gate.open()
        deltas = await asyncio.wait_for(read(stream), PATIENCE_S)
        assert tokens_of(deltas) == greedy_tokens(prompt_of(4), greedy("", 4).sampling)

    with driving(synthetic) as driver:
        gate = Gate(driver)
        asyncio.run(main())
