"""Models come and go while others answer: on demand, by memory, and by the operator."""

from __future__ import annotations

import asyncio

import pytest

from ortserve.gateway.exchange import Exchange
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.fleet.memory import NoRoomError
from ortserve.gateway.fleet.spec import ModelSpec
from ortserve.gateway.options.model import EngineSettings
from ortserve.runtime.errors import ConfigurationError, MemoryBudgetError, ModelError
from tests.gateway.fleet.opener import ROOM_FOR_TWO, ScriptedOpener, make_fleet, spec_of
from tests.gateway.fleet.stories import ask, is_open, phases, refused, tell, until


def test_a_model_is_loaded_when_it_is_first_asked_for_and_all_who_ask_wait_for_one_load() -> None:
    opener = ScriptedOpener(late={"b"})

    async def story(fleet: Fleet) -> None:
        assert phases(fleet) == {"a": "ready", "b": "unloaded"}
        asking = [asyncio.create_task(ask(fleet, "b")) for _ in range(5)]
        await until(lambda: phases(fleet)["b"] == "loading")
        assert await ask(fleet, "a") == "a"
        opener.gate.set()
        assert await asyncio.gather(*asking) == ["b"] * 5
        assert [source for source, _ in opener.opened] == ["a", "b"]

    tell(make_fleet(opener, spec_of("a"), spec_of("b", preload=False)), story)


def test_nobody_waits_for_a_load_longer_than_is_allowed() -> None:
    opener = ScriptedOpener(late={"b"})

    async def story(fleet: Fleet) -> None:
        assert "is loading" in (await refused(fleet, "b")).problem.message
        opener.gate.set()
        await until(lambda: phases(fleet)["b"] == "ready")  # for those who come later
        assert await ask(fleet, "b") == "b"

    tell(make_fleet(opener, spec_of("a"), spec_of("b", preload=False), hold_s=0.05), story)


def test_the_least_recently_used_idle_model_gives_way() -> None:
    opener = ScriptedOpener()

    async def story(fleet: Fleet) -> None:
        assert await ask(fleet, "b") == "b"
        assert await ask(fleet, "a") == "a"
        assert fleet.num_bytes <= fleet.memory
        assert await ask(fleet, "c") == "c"
        assert phases(fleet) == {"a": "ready", "b": "unloaded", "c": "ready"}
        assert fleet.num_bytes <= fleet.memory
        assert await ask(fleet, "b") == "b"  # and comes back when it is asked for
        assert phases(fleet) == {"a": "unloaded", "b": "ready", "c": "ready"}

    tell(make_fleet(opener, spec_of("a"), spec_of("b"), spec_of("c", preload=False), memory=ROOM_FOR_TWO), story)


def test_pinned_models_and_those_in_use_do_not_give_way() -> None:
    opener = ScriptedOpener()

    async def story(fleet: Fleet) -> None:
        exchange = Exchange()
        await fleet.generator("b", exchange)
        assert "cannot give way" in (await refused(fleet, "c")).problem.message
        with pytest.raises(NoRoomError, match="unload one"):
            await fleet.load("c")
        assert phases(fleet) == {"a": "ready", "b": "ready", "c": "unloaded"}
        exchange.end()
        assert await ask(fleet, "c") == "c"
        assert phases(fleet) == {"a": "ready", "b": "unloaded", "c": "ready"}

    specs = (spec_of("a", pinned=True), spec_of("b"), spec_of("c", preload=False))
    tell(make_fleet(opener, *specs, memory=ROOM_FOR_TWO), story)


def test_what_does_not_fit_together_is_told_at_the_start() -> None:
    fleet = make_fleet(ScriptedOpener(), spec_of("a"), spec_of("b"), spec_of("c"), memory=ROOM_FOR_TWO)
    with pytest.raises(NoRoomError, match=r"c needs 32\.\d MiB.*\(a 32\.\d MiB, b 32\.\d MiB\)"):
        asyncio.run(fleet.start())
    with pytest.raises(MemoryBudgetError, match="for its weights"):
        asyncio.run(make_fleet(ScriptedOpener(), spec_of("a"), memory=2**20).start())


def test_unloading_waits_for_those_who_use_it_and_refuses_new_ones() -> None:
    opener = ScriptedOpener()

    async def story(fleet: Fleet) -> None:
        exchange = Exchange()
        service = await fleet.generator("a", exchange)
        unloading = asyncio.create_task(fleet.unload("a"))
        await until(lambda: phases(fleet)["a"] == "draining")
        assert "is not loaded" in (await refused(fleet, "a")).problem.message
        assert is_open(service)  # what has been admitted may still submit
        assert await ask(fleet, "b") == "b"
        exchange.end()
        await unloading
        assert not is_open(service)
        assert phases(fleet)["a"] == "unloaded"
        assert await refused(fleet, "a")  # the operator's wish: no request brings it back
        await fleet.load("a")
        assert await ask(fleet, "a") == "a"

    tell(make_fleet(opener, spec_of("a"), spec_of("b")), story)


def test_a_drain_is_bounded() -> None:
    opener = ScriptedOpener()

    async def story(fleet: Fleet) -> None:
        exchange = Exchange()
        service = await fleet.generator("a", exchange)
        await fleet.unload("a", drain_s=0.01)
        assert not is_open(service)
        exchange.end()  # late, and harmless

    tell(make_fleet(opener, spec_of("a")), story)


def test_a_swap_with_room_never_leaves_its_names_without_a_model() -> None:
    opener = ScriptedOpener(late={"new"})

    async def story(fleet: Fleet) -> None:
        exchange = Exchange()
        old = await fleet.generator("assistant", exchange)
        swapping = asyncio.create_task(fleet.swap("assistant", spec_of("new")))
        await until(lambda: opener.entered.acquire(blocking=False))
        assert await ask(fleet, "assistant") == "a"
        opener.gate.set()
        await until(lambda: len(opener.opened) == 2 and fleet.state("assistant").source == "new")
        assert [await ask(fleet, name) for name in ("a", "assistant", "new")] == ["a"] * 3
        assert is_open(old)
        assert not swapping.done()
        exchange.end()
        await swapping
        assert not is_open(old)
        assert len(fleet.states()) == 1

    tell(make_fleet(opener, spec_of("a", aliases=("assistant",))), story)


def test_a_swap_without_room_lets_requests_wait_for_the_new_model() -> None:
    opener = ScriptedOpener(late={"new"})

    async def story(fleet: Fleet) -> None:
        swapping = asyncio.create_task(fleet.swap("b", spec_of("new")))
        await until(lambda: opener.entered.acquire(blocking=False))
        assert fleet.num_bytes <= fleet.memory
        asking = asyncio.create_task(ask(fleet, "b"))
        assert await ask(fleet, "a") == "a"
        assert not asking.done()
        opener.gate.set()
        await swapping
        assert await asking == "b"
        assert fleet.state("b").source == "new"
        assert fleet.num_bytes <= fleet.memory

    tell(make_fleet(opener, spec_of("a"), spec_of("b"), memory=ROOM_FOR_TWO), story)


@pytest.mark.parametrize("memory", [2**30, ROOM_FOR_TWO])
def test_when_a_swap_fails_the_old_model_stays_or_comes_back(memory: int) -> None:
    opener = ScriptedOpener(broken={"new"})

    async def story(fleet: Fleet) -> None:
        before = fleet.num_bytes
        with pytest.raises(ModelError, match="new is broken"):
            await fleet.swap("b", spec_of("new"))
        assert await ask(fleet, "b") == "b"
        assert (fleet.state("b").source, fleet.num_bytes) == ("b", before)
        assert "new" not in phases(fleet)

    tell(make_fleet(opener, spec_of("a"), spec_of("b"), memory=memory), story)


def test_a_model_from_elsewhere_is_added_under_names_that_are_free() -> None:
    opener = ScriptedOpener(broken={"bad"})

    async def story(fleet: Fleet) -> None:
        await fleet.load_enlisted(fleet.enlist(spec_of("new", aliases=("fresh",))))
        assert await ask(fleet, "fresh") == "new"
        with pytest.raises(ConfigurationError, match="two models are called fresh"):
            fleet.enlist(spec_of("other", aliases=("fresh",)))
        with pytest.raises(ModelError):
            await fleet.load_enlisted(fleet.enlist(spec_of("bad")))
        assert phases(fleet) == {"a": "ready", "new": "ready"}

    tell(make_fleet(opener, spec_of("a")), story)


def test_models_of_one_own_name_are_served_under_those_they_were_given() -> None:
    """Two exports of one checkpoint: its name means the first, unless a model is shown by it."""

    def same(name: str | None) -> ModelSpec:
        return spec_of("same", name=name)

    async def two(fleet: Fleet) -> None:
        assert [state.names for state in fleet.states()] == [("a", "same"), ("b",)]
        assert [await ask(fleet, name) for name in ("a", "b", "same")] == ["a", "b", "a"]
        await fleet.load_enlisted(fleet.enlist(same("c")))
        assert fleet.state("c").names == ("c",)
        with pytest.raises(ConfigurationError, match="two models are called a"):
            fleet.enlist(same("a"))
        await fleet.load_enlisted(fleet.enlist(same(None)))  # shown by it: it is this one's now
        assert [await ask(fleet, name) for name in ("a", "same")] == ["a", "same"]
        assert fleet.state("a").names == ("a",)
        with pytest.raises(ConfigurationError, match="two models are called same"):
            fleet.enlist(same(None))

    tell(make_fleet(ScriptedOpener(), same("a"), same("b")), two)

    async def late(fleet: Fleet) -> None:
        assert [await ask(fleet, name) for name in ("a", "b", "same")] == ["a", "b", "a"]

    tell(make_fleet(ScriptedOpener(unknown={"same"}), same("a"), same("b")), late)


@pytest.mark.parametrize(("engines", "line"), [(1, "gives the cores to a process"), (2, "divides the cores among")])
def test_no_other_model_comes_beside_one_that_has_divided_the_cores(engines: int, line: str) -> None:
    divided = EngineSettings(engines=engines)  # as the server's options make every model that comes later

    async def story(fleet: Fleet) -> None:
        with pytest.raises(ConfigurationError, match=rf"--engines {engines} {line} .* here are 2 models"):
            fleet.enlist(spec_of("b", options=divided))
        with pytest.raises(ConfigurationError, match=line):
            fleet.enlist(spec_of("b"))
        await fleet.swap("a", spec_of("c", options=divided))  # in its place
        assert await ask(fleet, "a") == "a"
        assert fleet.state("a").source == "c"

    tell(make_fleet(ScriptedOpener(), spec_of("a", options=divided)), story)
