"""The tree in memory: what is found, what is kept, what goes first, and who waits for whom."""

from __future__ import annotations

import random

import pytest

from ortserve.plugins.api import Breakpoint, CacheMode, CacheQuery, HitState
from ortserve.plugins.prefix_cache import PrefixCache
from ortserve.plugins.prefix_cache.keys import num_shared, pack, root_key, unpack
from tests.plugins.engine import Engine, numbers


def test_packing_is_lossless_and_prefixes_are_counted_in_tokens() -> None:
    source = random.Random(1)
    for _ in range(200):
        one = tuple(source.randrange(3) * 0x01000001 for _ in range(source.randrange(9)))
        other = tuple(source.randrange(3) * 0x01000001 for _ in range(source.randrange(9)))
        shared = next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        assert num_shared(pack(one), pack(other)) == shared
        assert unpack(pack(one)) == one


def test_digest_and_salt_are_kept_apart_in_a_root() -> None:
    assert root_key("a", b"bc") != root_key("ab", b"c")


def test_a_hit_may_end_anywhere_in_a_block() -> None:
    engine = Engine()
    engine.keep(numbers(0, 11))
    assert engine.found(numbers(0, 11)) == 11
    assert engine.found((*numbers(0, 6), 99, 98)) == 6
    assert engine.found((99,)) == 0
    hit = engine.cache.lookup(engine.query(numbers(0, 11), limit=9))
    assert (hit.num_tokens, len(hit.blocks)) == (9, 3)


def test_the_best_of_many_partial_matches_is_found() -> None:
    engine = Engine(64)
    for last in range(20):
        engine.keep((1, 2, 3, 4, 7, last, last, last))
    assert engine.found((1, 2, 3, 4, 7, 13, 13, 50)) == 7


def test_a_tail_is_replaced_by_its_longer_version() -> None:
    engine = Engine()
    engine.keep(numbers(0, 6))
    engine.keep(numbers(0, 7))
    engine.keep(numbers(0, 10))
    assert engine.cache.stats().num_blocks == 3
    engine.keep(numbers(0, 9))
    assert engine.cache.stats().num_blocks == 3
    assert engine.found(numbers(0, 12)) == 10


def test_a_replaced_tail_stays_while_it_is_read() -> None:
    engine = Engine()
    engine.keep(numbers(0, 6))
    hit = engine.cache.lookup(engine.query(numbers(0, 6)))
    engine.keep(numbers(0, 8))
    assert engine.cache.evict(10) == 1, "the new tail goes, what the hit reads does not"
    before = engine.arena.num_free
    engine.cache.release(hit)
    assert engine.arena.num_free == before + 1
    assert engine.cache.evict(10) == 1


def test_salts_share_nothing() -> None:
    engine = Engine()
    engine.keep(numbers(0, 8), b"mine")
    assert engine.found(numbers(0, 8), b"yours") == 0
    assert engine.found(numbers(0, 8), b"mine") == 8


def test_the_cheapest_leaf_goes_first_and_use_counts() -> None:
    engine = Engine()
    engine.keep(numbers(0, 4), seconds=5.0)
    engine.keep(numbers(10, 4), seconds=1.0)
    engine.keep(numbers(20, 4), seconds=1.0)
    assert engine.found(numbers(10, 4)) == 4
    engine.cache.evict(1)
    assert engine.found(numbers(20, 4)) == 0, "as cheap as the other, and used longer ago"
    engine.cache.evict(1)
    assert engine.found(numbers(0, 4)) == 4, "five times as expensive"


def test_what_is_never_used_again_ages_whatever_it_cost() -> None:
    engine = Engine(budget=8)
    engine.keep(numbers(0, 4), seconds=5.0)
    for round in range(1, 20):
        engine.keep(numbers(round * 4, 4), seconds=1.0)
    for round in range(20, 60):
        engine.keep(numbers(round * 4, 4), seconds=1.0)
    assert engine.found(numbers(0, 4)) == 0


def test_equal_costs_are_least_recently_used_and_leaves_first() -> None:
    engine = Engine(budget=4)
    engine.keep(numbers(0, 12), seconds=0.0)
    engine.keep(numbers(50, 4), seconds=0.0)
    assert engine.found(numbers(0, 12)) == 12
    engine.keep(numbers(60, 4), seconds=0.0)
    assert engine.found(numbers(50, 4)) == 0
    engine.keep(numbers(70, 8), seconds=0.0)
    assert engine.found(numbers(0, 12)) == 4, "the end of a chain goes before its beginning"


def test_a_budget_smaller_than_a_prompt_keeps_its_beginning() -> None:
    engine = Engine(budget=3)
    assert engine.serve(engine.query(numbers(0, 20))) == 2
    assert engine.found(numbers(0, 20)) == 12


def test_no_budget_keeps_nothing() -> None:
    engine = Engine(budget=0)
    assert engine.serve(engine.query(numbers(0, 20))) == 5


def test_modes_keep_what_they_are_allowed_to() -> None:
    engine = Engine()
    engine.serve(engine.query(numbers(0, 12), mode=CacheMode.OFF))
    assert engine.found(numbers(0, 12)) == 0
    point = Breakpoint(6, 60.0)
    engine.serve(engine.query(numbers(0, 12), mode=CacheMode.EXPLICIT, breakpoints=(point,)))
    assert engine.found(numbers(0, 12)) == 6, "exactly to the breakpoint"
    assert engine.cache.lookup(engine.query(numbers(0, 12), mode=CacheMode.OFF)).num_tokens == 0


def test_breakpoints_give_a_lifetime_that_use_renews() -> None:
    engine = Engine()
    query = engine.query(numbers(0, 8), breakpoints=(Breakpoint(4, 60.0),))
    engine.serve(query)
    engine.clock.now += 50.0
    engine.serve(query)
    engine.clock.now += 50.0
    assert engine.cache.evict(9) == 1
    assert engine.found(numbers(0, 8)) == 4
    engine.clock.now += 11.0
    assert engine.cache.evict(9) == 1


def test_lifetimes_leave_room_for_others() -> None:
    engine = Engine(budget=8, options={"pinned_share": "0.5"})
    for first in (0, 20, 40):
        engine.serve(engine.query(numbers(first, 8), breakpoints=(Breakpoint(8, 600.0),)))
    assert engine.cache.evict(99) == 2
    assert sum(entry.pinned_s is not None for entry in engine.cache.entries()) == 4


def test_a_pin_can_be_ended() -> None:
    engine = Engine()
    engine.keep(numbers(0, 8))
    assert engine.cache.pin(engine.query(numbers(0, 8)), 1e9) == 8
    assert engine.cache.evict(9) == 0
    assert engine.cache.pin(engine.query(numbers(0, 8)), 0.0) == 8
    assert engine.cache.evict(9) == 2


def test_a_second_request_follows_the_first() -> None:
    engine = Engine()
    ticket = engine.cache.announce(engine.query(numbers(0, 12)), 0)
    follower = engine.cache.lookup(engine.query((*numbers(0, 9), 77, 78)))
    stranger = engine.cache.lookup(engine.query(numbers(0, 9), b"other"))
    near = engine.cache.lookup(engine.query((0, 1, 2, 55)))
    assert (follower.state, stranger.state, near.state) == (HitState.COMPUTING, HitState.READY, HitState.READY)
    for start, end in ((0, 4), (4, 8)):
        assert engine.cache.poll() == ()
        part = engine.part(numbers(0, end), start=start)
        engine.arena.hand_over(set(part.blocks) - set(engine.cache.publish(ticket, part)))
    (change,) = engine.cache.poll()
    assert (change.hit_id, change.state) == (follower.id, HitState.READY)
    engine.cache.release(follower)
    assert engine.found((*numbers(0, 9), 77, 78)) == 8, "the tail of the first may take long: nobody waits for it"
    engine.cache.finish(ticket, True)


@pytest.mark.parametrize("ends", ["finish", "clear", "refuse"])
def test_followers_never_wait_in_vain(ends: str) -> None:
    engine = Engine(budget=0 if ends == "refuse" else None)
    ticket = engine.cache.announce(engine.query(numbers(0, 12)), 0)
    follower = engine.cache.lookup(engine.query(numbers(0, 12)))
    assert follower.state is HitState.COMPUTING
    if ends == "finish":
        engine.cache.finish(ticket, False)
    elif ends == "clear":
        engine.cache.clear(None)
    else:
        engine.arena.release(engine.cache.publish(ticket, engine.part(numbers(0, 12))))
    assert [change.state for change in engine.cache.poll()] == [HitState.FAILED]
    engine.cache.release(follower)
    assert engine.cache.lookup(engine.query(numbers(0, 12))).state is HitState.READY


def test_what_was_announced_before_a_clear_is_not_kept() -> None:
    engine = Engine()
    ticket = engine.cache.announce(engine.query(numbers(0, 8)), 0)
    engine.cache.clear(b"")
    part = engine.part(numbers(0, 8))
    assert list(engine.cache.publish(ticket, part)) == list(part.blocks)
    engine.cache.finish(ticket, True)
    assert list(engine.cache.held()) == []


def test_generated_text_is_the_prefix_of_the_next_turn() -> None:
    engine = Engine()
    ticket = engine.cache.announce(engine.query(numbers(0, 6)), 0)
    first, rest = engine.part(numbers(0, 4)), engine.part(numbers(0, 15), start=4)
    assert not engine.cache.publish(ticket, first)
    assert not engine.cache.publish(ticket, rest)
    engine.arena.hand_over(first.blocks + rest.blocks)
    engine.cache.finish(ticket, True)
    assert engine.found((*numbers(0, 15), 90, 91)) == 15


def test_a_part_that_does_not_continue_what_is_stored_is_refused() -> None:
    engine = Engine()
    ticket = engine.cache.announce(engine.query(numbers(0, 12)), 4)
    part = engine.part(numbers(0, 12), start=4)
    assert list(engine.cache.publish(ticket, part)) == list(part.blocks)


def test_empty_salts_are_forgotten() -> None:
    engine = Engine(budget=4)
    for number in range(50):
        engine.keep(numbers(0, 4), str(number).encode())
    assert len({entry.key for entry in engine.cache.entries()}) == 4
    assert isinstance(engine.cache, PrefixCache)
    assert len(engine.cache._memory.roots()) == 4


def test_entries_say_who_is_used() -> None:
    engine = Engine()
    engine.keep(numbers(0, 6))
    engine.clock.now += 3.0
    assert engine.found(numbers(0, 4)) == 4
    engine.clock.now += 2.0
    head, tail = engine.cache.entries()
    assert (head.parent, head.num_tokens, head.depth, head.num_hits, head.idle_s) == (None, 4, 0, 1, 2.0)
    assert (tail.parent, tail.num_tokens, tail.depth, tail.num_hits, tail.idle_s) == (head.key, 2, 4, 0, 5.0)
    stats = engine.cache.stats()
    assert (stats.num_hit_tokens, stats.num_query_tokens, stats.num_lookups) == (4, 10, 2)
    assert stats.seconds_saved == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    "options", [{"colour": "red"}, {"max_bytes": "many"}, {"max_bytes": "-1"}, {"pinned_share": "2"}, {"max_bytes": ""}]
)
def test_bad_options_are_refused_in_one_line(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        Engine(options=options)


def test_an_empty_query_is_a_miss() -> None:
    engine = Engine()
    engine.keep(numbers(0, 4))
    assert engine.cache.lookup(CacheQuery((), 0, b"")).num_tokens == 0
    assert engine.cache.lookup(CacheQuery(numbers(0, 4), -1, b"")).num_tokens == 0
