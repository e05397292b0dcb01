"""Models whose engines fail: started again, given up, and let go of when nobody wants them any more."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ortserve.gateway.fleet.fleet import Fleet
from ortserve.runtime.workers.restarts import Restarts
from tests.gateway.fleet.opener import ScriptedOpener, make_fleet, spec_of
from tests.gateway.fleet.stories import ask, phases, refused, tell, until


def test_a_failed_engine_is_started_again_and_others_go_on() -> None:
    opener = ScriptedOpener()

    async def story(fleet: Fleet) -> None:
        opener.late.add("a")
        opener.kill("a")
        await until(lambda: phases(fleet)["a"] == "restarting")
        assert await ask(fleet, "b") == "b"
        asking = asyncio.create_task(ask(fleet, "a"))
        opener.gate.set()
        assert await asking == "a"
        assert [state.num_restarts for state in fleet.states()] == [1, 0]

    tell(make_fleet(opener, spec_of("a"), spec_of("b")), story)


def test_a_model_that_keeps_failing_is_given_up_until_somebody_loads_it() -> None:
    opener = ScriptedOpener()

    async def story(fleet: Fleet) -> None:
        opener.broken.add("a")
        opener.kill("a")
        await until(lambda: phases(fleet)["a"] == "failed")
        assert fleet.state("a").error == "a is broken: export it again"
        assert fleet.state("a").num_restarts == 2
        assert fleet.state("a").num_bytes == 0
        assert "has failed" in (await refused(fleet, "a")).problem.message
        assert await ask(fleet, "b") == "b"
        opener.broken.clear()
        await fleet.load("a")
        assert await ask(fleet, "a") == "a"

    tell(make_fleet(opener, spec_of("a"), spec_of("b"), delays_s=(0.0, 0.01)), story)


def test_an_operator_ends_the_attempts_to_start_a_model_again() -> None:
    opener = ScriptedOpener()

    async def story(fleet: Fleet) -> None:
        opener.kill("a")
        await until(lambda: phases(fleet)["a"] == "restarting")
        await fleet.unload("a")
        assert phases(fleet) == {"a": "unloaded"}
        assert len(opener.opened) == 1

    tell(make_fleet(opener, spec_of("a"), delays_s=(3600.0,)), story)


def test_a_model_that_nobody_waits_for_any_more_is_closed_when_it_comes() -> None:
    opener = ScriptedOpener(late={"a"})

    async def main() -> None:
        fleet = make_fleet(opener, spec_of("a"))
        starting = asyncio.create_task(fleet.start())
        await until(lambda: opener.entered.acquire(blocking=False))
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await fleet.close()
        opener.gate.set()
        await until(lambda: bool(opener.opened) and not opener.opened[0][1].healthy)

    asyncio.run(main())


def test_waits_grow_and_failures_are_forgotten() -> None:
    restarts = Restarts((0.0, 1.0, 5.0), window_s=100.0)
    assert [restarts.delay_after([10.0] * count, 10.0) for count in (1, 2, 3, 4)] == [0.0, 1.0, 5.0, None]
    assert restarts.delay_after([10.0, 20.0, 115.0], 115.0) == 1.0
