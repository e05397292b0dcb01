"""Packed arrays of a step against a naive packer that works row by row and token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.runtime.slots.batch import build_batch
from ortserve.runtime.step import Row, Step

CAPACITY = 64


@st.composite
def steps(draw: st.DrawFn) -> tuple[Step, int, int]:
    """A step that keeps the contract, the number of bound rows, and the slot of the first of them."""
    num_rows, first_slot = draw(st.integers(1, 8)), draw(st.sampled_from([0, 0, 4]))
    bound = range(first_slot, first_slot + num_rows)
    slots = draw(st.permutations(bound))[: draw(st.integers(1, num_rows))]
    longest = draw(st.integers(1, 20))
    rows = []
    for slot in slots:
        tokens = tuple(draw(st.lists(st.integers(0, 99), min_size=1, max_size=longest)))
        start = draw(st.integers(0, CAPACITY - longest))
        rows.append(Row(f"r{slot}", slot, start, tokens, draw(st.integers(0, len(tokens)))))
    return Step(0, (), tuple(rows)), num_rows, first_slot


@given(steps())
def test_arrays_are_those_of_a_naive_packer(planned: tuple[Step, int, int]) -> None:
    step, num_rows, first_slot = planned
    batch = build_batch(step, num_rows=num_rows, capacity=CAPACITY, first_slot=first_slot)
    longest = max(len(row.tokens) for row in step.rows)
    input_ids: list[int] = []
    position_ids: list[int] = []
    unpad: list[int] = []
    logit_index: list[int] = []
    seqlens_k, query_lengths = [0] * num_rows, [0] * num_rows
    for row in step.rows:
        first = len(input_ids)
        bound = row.slot - first_slot
        for place, token in enumerate(row.tokens):
            input_ids.append(token)
            position_ids.append(row.start + place)
            unpad.append(bound * longest + place)
        logit_index += range(len(input_ids) - row.num_logits, len(input_ids))
        seqlens_k[bound] = row.start + len(row.tokens) - 1
        query_lengths[bound] = len(row.tokens)
        assert batch.pad_index[bound, : len(row.tokens)].tolist() == list(range(first, len(input_ids)))
    assert batch.input_ids.tolist() == input_ids
    assert batch.position_ids.tolist() == position_ids
    assert batch.unpad_index.tolist() == unpad
    assert batch.logit_index.tolist() == logit_index
    assert batch.seqlens_k.tolist() == seqlens_k
    assert batch.query_lengths.tolist() == query_lengths
    assert batch.pad_index.shape == (num_rows, longest)
    assert batch.pad_index.min() >= 0
    assert batch.pad_index.max() < step.num_tokens
    assert (int(batch.total_length), batch.total_length.shape, batch.num_rows) == (CAPACITY, (), num_rows)


@given(steps())
def test_an_odd_number_of_tokens_gets_one_more_that_no_row_attends_to(planned: tuple[Step, int, int]) -> None:
    step, num_rows, first_slot = planned
    plain = build_batch(step, num_rows=num_rows, capacity=CAPACITY, first_slot=first_slot)
    even = build_batch(step, num_rows=num_rows, capacity=CAPACITY, first_slot=first_slot, even=True)
    for name in ("input_ids", "position_ids", "unpad_index"):
        packed = getattr(plain, name).tolist()
        assert getattr(even, name).tolist() == packed + [0] * (len(packed) % 2)
    for name in ("seqlens_k", "query_lengths", "total_length", "pad_index", "logit_index"):
        assert getattr(even, name).tolist() == getattr(plain, name).tolist()


@given(steps())
def test_padding_and_unpadding_undo_each_other_and_types_are_the_graphs(planned: tuple[Step, int, int]) -> None:
    step, num_rows, first_slot = planned
    batch = build_batch(step, num_rows=num_rows, capacity=CAPACITY, first_slot=first_slot)
    padded = batch.input_ids[batch.pad_index]
    assert padded.reshape(-1)[batch.unpad_index].tolist() == batch.input_ids.tolist()
    for name in ("input_ids", "position_ids", "pad_index", "unpad_index", "logit_index"):
        assert getattr(batch, name).dtype == "int64"
        assert getattr(batch, name).flags.c_contiguous
    for name in ("seqlens_k", "query_lengths", "total_length"):
        assert getattr(batch, name).dtype == "int32"


GOOD = Row("r", 1, 10, (1, 2, 3), 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((replace(GOOD, slot=4),), "slot 4 is none of 0 to 3"),
        ((replace(GOOD, slot=-1),), "slot -1 is none of 0 to 3"),
        ((GOOD, replace(GOOD, start=0)), "two rows share a slot"),
        ((replace(GOOD, tokens=(), num_logits=0),), "at least one token"),
        ((replace(GOOD, start=-1),), "negative start"),
        ((replace(GOOD, start=CAPACITY - 2),), "padded rows reach 65, the capacity is 64"),
        ((replace(GOOD, start=CAPACITY - 1, tokens=(1,)), replace(GOOD, slot=2)), "padded rows reach 66"),
        ((replace(GOOD, num_logits=4),), "logits of tokens that are not fed"),
        ((replace(GOOD, num_logits=-1),), "logits of tokens that are not fed"),
        ((), "at least one row"),
    ],
)
def test_what_the_kernel_would_abort_on_is_found_before(rows: tuple[Row, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        build_batch(Step(0, (), rows), num_rows=4, capacity=CAPACITY)


def test_a_slot_before_the_first_that_is_bound_is_found_too() -> None:
    with pytest.raises(AssertionError, match="slot 1 is none of 2 to 3"):
        build_batch(Step(0, (), (GOOD,)), num_rows=2, capacity=CAPACITY, first_slot=2)


def test_a_row_may_end_exactly_at_the_capacity() -> None:
    row = replace(GOOD, start=CAPACITY - 3)
    assert build_batch(Step(0, (), (row,)), num_rows=2, capacity=CAPACITY).seqlens_k.tolist() == [0, CAPACITY - 1]
