"""Batches of close lengths: within the budget, little padding, everybody's turn comes, nothing lost or taken twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ortserve.runtime.encoders.queue import MAX_WASTE, EncoderInput, EncoderQueue, choose_slice

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=60)


@given(LENGTHS, st.data(), st.integers(16, 600), st.integers(1, 20))
def test_a_slice_holds_the_anchor_and_keeps_every_bound(
    lengths: list[int], data: st.DataObject, budget: int, most: int
) -> None:
    lengths.sort()
    anchor = data.draw(st.integers(0, len(lengths) - 1))
    start, stop = choose_slice(lengths, anchor, batch_tokens=budget, max_batch=most)
    assert 0 <= start <= anchor < stop <= len(lengths)
    if stop - start > 1:
        places = lengths[stop - 1] * (stop - start)
        assert places <= budget
        assert stop - start <= most
        assert places - sum(lengths[start:stop]) <= MAX_WASTE * places


@given(LENGTHS, st.data(), st.integers(16, 600))
def test_a_slice_stops_only_where_a_bound_stops_it(lengths: list[int], data: st.DataObject, budget: int) -> None:
    lengths.sort()
    anchor = data.draw(st.integers(0, len(lengths) - 1))
    start, stop = choose_slice(lengths, anchor, batch_tokens=budget, max_batch=1000)
    for first, end in ((start - 1, stop), (start, stop + 1)):
        if first >= 0 and end <= len(lengths):
            places = lengths[end - 1] * (end - first)
            assert places > budget or places - sum(lengths[first:end]) > MAX_WASTE * places


@given(st.lists(LENGTHS, min_size=1, max_size=5), st.integers(16, 600))
def test_every_input_is_taken_exactly_once(requests: list[list[int]], budget: int) -> None:
    queue = EncoderQueue(batch_tokens=budget, max_batch=16)
    for number, lengths in enumerate(requests):
        queue.add(number, [EncoderInput((1,) * length) for length in lengths])
    taken = []
    while batch := queue.take():
        taken += [(queued.request, queued.place, len(queued.input)) for queued in batch]
    wanted = [
        (number, place, length) for number, lengths in enumerate(requests) for place, length in enumerate(lengths)
    ]
    assert sorted(taken) == sorted(wanted)
    assert len(queue) == 0


def test_a_short_request_waits_for_one_batch_of_a_long_one() -> None:
    queue = EncoderQueue(batch_tokens=100, max_batch=16)
    queue.add(1, [EncoderInput((1,) * 50)] * 200)
    queue.add(2, [EncoderInput((1,) * 5)])
    assert {queued.request for queued in queue.take()} == {1}
    assert {queued.request for queued in queue.take()} == {2}


def test_inputs_of_several_requests_share_a_batch() -> None:
    queue = EncoderQueue(batch_tokens=100, max_batch=16)
    for number in range(4):
        queue.add(number, [EncoderInput((1,) * 10)])
    assert len(queue.take()) == 4


def test_what_is_removed_is_never_taken() -> None:
    queue = EncoderQueue(batch_tokens=40, max_batch=16)
    queue.add(1, [EncoderInput((1,) * 10)] * 9)
    queue.add(2, [EncoderInput((1,) * 10)] * 3)
    queue.take()
    queue.remove(1)
    queue.remove(1)
    left = []
    while batch := queue.take():
        left += batch
    assert {queued.request for queued in left} <= {2}
    assert len(queue) == 0


def test_an_input_longer_than_the_budget_goes_alone() -> None:
    queue = EncoderQueue(batch_tokens=16, max_batch=16)
    queue.add(1, [EncoderInput((1,) * 50), EncoderInput((1,) * 50)])
    assert len(queue.take()) == 1
    assert len(queue.take()) == 1
