"""What happens in a fleet, told in its event loop: who asks, who answers, who is refused. Knows no test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ortserve.gateway.errors import ApiError
from ortserve.gateway.exchange import Exchange
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.served.service import ModelService
from tests.waiting import PATIENCE_S

Story = Callable[[Fleet], Coroutine[Any, Any, None]]


def tell(fleet: Fleet, story: Story) -> None:
    """Run a story in a fleet that has started, within bounds."""

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await fleet.start()
            try:
                await story(fleet)
            finally:
                await fleet.close()

    asyncio.run(main())


def phases(fleet: Fleet) -> dict[str, str]:
    return {state.name: state.phase for state in fleet.states()}


async def ask(fleet: Fleet, name: str) -> str:
    """One whole request; who has answered it."""
    exchange = Exchange()
    try:
        return (await fleet.generator(name, exchange)).name
    finally:
        exchange.end()


def is_open(service: ModelService) -> bool:
    return service.driver.healthy


async def refused(fleet: Fleet, name: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await fleet.generator(name, Exchange())
    assert caught.value.problem.status == 503
    assert int(caught.value.problem.headers["retry-after"]) >= 1
    return caught.value


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110  # what it waits for happens on threads
        await asyncio.sleep(0.002)
