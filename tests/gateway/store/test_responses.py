"""Responses in the store: lists that share items, isolation, deletion, times and bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortserve.gateway.errors import ApiError
from ortserve.gateway.store.pages import PageRequest
from ortserve.gateway.store.state import State
from tests.gateway.store.keeping import ALICE, BOB, Clock, counted, ids, item, items, opened, response, run, used


async def add_chain(state: State, tenant: bytes = ALICE) -> None:
    """r1: i0 -> o0; r2 goes on from r1: i1 -> o1."""
    await state.responses.add(tenant, response("r1", inputs=[item("i0")], outputs=[item("o0")]))
    context = await state.responses.listed(tenant, "r1")
    assert context is not None
    await state.responses.add(tenant, response("r2", context=context, inputs=[item("i1")], outputs=[item("o1")]))


def test_a_chain_shares_its_items() -> None:
    with opened() as state:
        run(add_chain(state))
        assert ids(run(state.responses.listed(ALICE, "r2"))) == ["i0", "o0", "i1", "o1"]
        assert used(state).num_rows == 2 + 4
        assert used(state) == used(state, ALICE) == counted(state)


def test_deleting_an_earlier_one_leaves_a_later_one_whole() -> None:
    with opened() as state:
        run(add_chain(state))
        assert run(state.responses.delete(ALICE, "r1"))
        assert not run(state.responses.delete(ALICE, "r1"))
        assert run(state.responses.find(ALICE, "r1")) is None
        assert ids(run(state.responses.listed(ALICE, "r2"))) == ["i0", "o0", "i1", "o1"]
        assert run(state.responses.delete(ALICE, "r2"))
        assert used(state) == used(state, ALICE) == counted(state)
        assert used(state).num_rows == 0


def test_what_was_deleted_meanwhile_is_kept_again() -> None:
    """The list a response was made from is whole even when its parent went while it was generated."""
    with opened() as state:
        run(add_chain(state))
        context = run(state.responses.listed(ALICE, "r2"))
        assert context is not None
        for id in ("r1", "r2"):
            run(state.responses.delete(ALICE, id))
        run(state.responses.add(ALICE, response("r3", context=context, inputs=[item("i2")])))
        assert ids(run(state.responses.listed(ALICE, "r3"))) == ["i0", "o0", "i1", "o1", "i2"]


def test_no_tenant_reaches_another_s() -> None:
    with opened() as state:
        run(add_chain(state))
        run(state.conversations.add(ALICE, "c", 0, b"{}", [item("x")]))
        responses, conversations = state.responses, state.conversations
        assert run(responses.find(BOB, "r1")) is None
        assert run(responses.listed(BOB, "r1")) is None
        assert run(responses.input_items(BOB, "r1", PageRequest())) is None
        assert run(responses.find_items(BOB, ["i0", "x"])) == [None, None]
        assert not run(responses.delete(BOB, "r1"))
        run(responses.end(BOB, response("r1", size=9)))
        assert run(conversations.find(BOB, "c")) is None
        assert run(conversations.listed(BOB, "c")) is None
        assert run(conversations.page(BOB, "c", PageRequest())) is None
        assert run(conversations.find_item(BOB, "c", "x")) is None
        assert not run(conversations.append(BOB, "c", [item("y")]))
        assert not run(conversations.replace(BOB, "c", b"[]"))
        assert not run(conversations.delete_item(BOB, "c", "x"))
        assert not run(conversations.delete(BOB, "c"))
        # A response of another tenant does not add to it either, nor does an item's number open it.
        stolen = run(responses.listed(ALICE, "r1"))
        assert stolen is not None
        run(responses.add(BOB, response("r9", context=stolen, conversation="c")))
        assert ids(run(conversations.listed(ALICE, "c"))) == ["x"]
        copies = run(responses.listed(BOB, "r9"))
        assert copies is not None
        assert {one.number for one in copies}.isdisjoint(one.number for one in stolen)
        found = run(responses.find(ALICE, "r1"))
        assert found is not None
        assert b'padding":""' in found.body


def test_time_ends_them_unless_they_are_used() -> None:
    clock = Clock()
    with opened(clock=clock, ttl_s=100.0) as state:
        run(add_chain(state))
        clock.now += 60
        assert run(state.responses.listed(ALICE, "r2"))  # somebody goes on from it
        clock.now += 60
        assert run(state.responses.find(ALICE, "r1")) is None
        assert run(state.responses.find(ALICE, "r2")) is not None
        assert run(state.sweep()) == 1
        assert run(state.sweep()) == 0
        assert used(state).num_rows == 1 + 4
        clock.now += 101
        assert run(state.sweep()) == 1
        assert used(state) == counted(state)
        assert used(state).num_rows == 0


def test_a_running_one_neither_expires_nor_gives_way() -> None:
    clock = Clock()
    with opened(clock=clock, ttl_s=100.0, max_bytes=6000) as state:
        run(state.responses.add(ALICE, response("run", is_running=True)))
        clock.now += 1000
        assert run(state.sweep()) == 0
        for number in range(5):
            run(state.responses.add(ALICE, response(f"r{number}", size=2500)))
        assert run(state.responses.find(ALICE, "run")) is not None
        run(state.responses.end(ALICE, response("run"), events=b"e"))
        found = run(state.responses.find(ALICE, "run"))
        assert found is not None
        assert (found.extra, found.is_held) == (b"e", False)
        clock.now += 101
        assert run(state.responses.find(ALICE, "run")) is None
        assert used(state) == counted(state)


def test_the_bounds_hold_and_the_oldest_goes_first() -> None:
    clock = Clock()
    with opened(clock=clock, max_bytes=20_000) as state:
        for number in range(50):
            clock.now += 1
            run(state.responses.add(ALICE, response(f"r{number}", size=1500)))
            assert used(state).num_bytes <= 20_000
            assert used(state) == counted(state)
        kept = [number for number in range(50) if run(state.responses.find(ALICE, f"r{number}"))]
        assert kept == list(range(50 - len(kept), 50))
        assert 5 < len(kept) < 13


def test_the_tenant_that_uses_most_gives_way() -> None:
    with opened(max_bytes=40_000) as state:
        run(state.responses.add(BOB, response("b", size=1500)))
        for number in range(40):
            run(state.responses.add(ALICE, response(f"r{number}", size=1500)))
        assert run(state.responses.find(BOB, "b")) is not None
        assert used(state).num_bytes <= 40_000


def test_what_cannot_fit_is_refused_and_leaves_nothing() -> None:
    with opened(max_bytes=5000) as state:
        run(state.responses.add(ALICE, response("run", is_running=True)))
        before = used(state)
        with pytest.raises(ApiError, match="full"):
            run(state.responses.add(ALICE, response("big", size=5000)))
        assert used(state) == before == counted(state)
        assert run(state.responses.find(ALICE, "run")) is not None


def test_a_conversation_grows_by_whole_turns() -> None:
    with opened() as state:
        responses, conversations = state.responses, state.conversations
        run(conversations.add(ALICE, "c", 0, b"{}", items("s", 1)))
        context = run(conversations.listed(ALICE, "c"))
        assert context is not None
        turn = response("r1", context=context, inputs=items("i", 2), outputs=items("o", 1), conversation="c")
        run(responses.add(ALICE, turn))
        assert ids(run(conversations.listed(ALICE, "c"))) == ["s0", "i0", "i1", "o0"]
        # One in the background adds when it ends, and a failed one not at all.
        for id, with_turn in (("r2", True), ("r3", False)):
            context = run(conversations.listed(ALICE, "c"))
            assert context is not None
            begun = response(id, context=context, inputs=[item(f"{id}-in")], conversation="c", is_running=True)
            run(responses.add(ALICE, begun))
            assert ids(run(conversations.listed(ALICE, "c"))) == ids(context)
            ended = response(id, context=context, outputs=[item(f"{id}-out")], conversation="c")
            run(responses.end(ALICE, ended, with_turn=with_turn))
        assert ids(run(conversations.listed(ALICE, "c")))[4:] == ["r2-in", "r2-out"]
        # Deleting the conversation leaves the responses their items, and the other way round.
        assert run(conversations.delete(ALICE, "c"))
        assert ids(run(responses.listed(ALICE, "r1"))) == ["s0", "i0", "i1", "o0"]
        assert used(state) == counted(state)


def test_an_id_names_one_item_of_a_list() -> None:
    with opened() as state:
        run(state.conversations.add(ALICE, "c", 0, b"{}", [item("x", "old"), item("x", "new"), item("y")]))
        listed = run(state.conversations.listed(ALICE, "c"))
        assert ids(listed) == ["x", "y"]
        assert run(state.conversations.append(ALICE, "c", [item("y"), item("z")]))
        assert ids(run(state.conversations.listed(ALICE, "c"))) == ["x", "y", "z"]
        assert run(state.conversations.delete_item(ALICE, "c", "y"))
        assert not run(state.conversations.delete_item(ALICE, "c", "y"))
        assert ids(run(state.conversations.listed(ALICE, "c"))) == ["x", "z"]
        assert used(state) == counted(state)


def test_interrupted_ones_are_mended_at_the_next_start(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        run(state.responses.add(ALICE, response("run", is_running=True)))
        run(state.responses.add(ALICE, response("done")))
    with opened(tmp_path) as state:
        assert state.responses.end_interrupted(lambda _: b"failed") == 1
        assert state.responses.end_interrupted(lambda _: b"again") == 0
        found = [run(state.responses.find(ALICE, id)) for id in ("run", "done")]
        assert [record.body == b"failed" for record in found if record is not None] == [True, False]
