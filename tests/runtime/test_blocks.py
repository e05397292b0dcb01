"""Reference counts against a naive model of holders."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.runtime.scheduling.blocks import BlockPool


@given(st.integers(0, 12), st.lists(st.tuples(st.sampled_from("arx"), st.integers(0, 8)), max_size=40))
def test_any_course_of_holding_and_releasing_counts_right(num_blocks: int, moves: list[tuple[str, int]]) -> None:
    pool = BlockPool(num_blocks)
    holders: list[list[int]] = []
    for kind, number in moves:
        if kind == "a" and number <= pool.num_free:
            taken = pool.allocate(number)
            assert len(set(taken)) == number
            assert not {block for held in holders for block in held} & set(taken), "a held block was given out again"
            holders.append(taken)
        elif kind == "r" and holders:
            shared = holders[number % len(holders)]
            pool.retain(shared)
            holders.append(list(shared))
        elif kind == "x" and holders:
            pool.release(holders.pop(number % len(holders)))
        held_counts = Counter(block for held in holders for block in held)
        assert pool.references() == tuple(held_counts[block] for block in range(num_blocks))
        assert pool.num_free == num_blocks - len(held_counts)
        assert pool.num_blocks == num_blocks


def test_the_most_recently_released_block_is_taken_first() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2)
    pool.release([first])
    assert pool.allocate(1) == [first]
    pool.release([second])
    assert pool.allocate(1) == [second]


def test_more_than_is_free_is_a_defect_of_the_caller() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="2 blocks wanted, 1 free"):
        pool.allocate(2)
    with pytest.raises(AssertionError):
        pool.allocate(-1)


def test_what_nobody_holds_can_be_neither_shared_nor_released() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.release([block])
    with pytest.raises(AssertionError, match="released more often than held"):
        pool.release([block])
    with pytest.raises(AssertionError, match="free and cannot be shared"):
        pool.retain([block])
