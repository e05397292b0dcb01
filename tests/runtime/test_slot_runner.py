"""Which slots a step binds: as few as hold its rows, with the same bits wherever they are, and no others touched."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.slots.runner import Runner
from ortserve.runtime.step import Row, Step
from tests.runtime.synthetic import SyntheticModel

NUM_ROWS = 6  # no power of two
CAPACITY = 256
PROMPT = tuple(range(1, 21))


def new_store(model: SyntheticModel) -> SlotKvStore:
    return SlotKvStore(model.manifest.kv, num_rows=NUM_ROWS, capacity=CAPACITY, num_host_blocks=0)


def new_runner(model: SyntheticModel, store: SlotKvStore) -> Runner:
    return Runner(model.manifest, model.session, store, max_logit_rows=NUM_ROWS)


@pytest.mark.parametrize("slots", [(0,), (3,), (5,), (2, 3), (4, 5), (1, 5), (3, 4)])
def test_rows_have_the_same_bits_in_every_slot_and_touch_no_other(
    synthetic: SyntheticModel, slots: tuple[int, ...]
) -> None:
    expected = new_runner(synthetic, new_store(synthetic)).run(Step(0, (), (Row("r", 0, 0, PROMPT, 1),))).copy()
    store = new_store(synthetic)
    store._rows.fill(0.5)  # what others hold is neither read nor written
    runner = new_runner(synthetic, store)
    others = [slot for slot in range(NUM_ROWS) if slot not in slots]
    before = [store.row(slot, CAPACITY).copy() for slot in others]
    for begin, end in ((0, 12), (12, 20)):  # the second one reads what the first one has stored
        rows = tuple(Row(f"{slot}", slot, begin, PROMPT[begin:end], int(end == 20)) for slot in slots)
        logits = runner.run(Step(0, (), rows))
    assert np.array_equal(logits, np.repeat(expected, len(slots), axis=0))
    for slot, row in zip(others, before, strict=True):
        assert np.array_equal(store.row(slot, CAPACITY), row)


def test_a_step_binds_the_slots_around_its_own(synthetic: SyntheticModel) -> None:
    runner = new_runner(synthetic, new_store(synthetic))
    found = {used: runner._slots_around(list(used)) for count in (1, 2, 3) for used in combinations(range(6), count)}
    assert all(set(used) <= set(bound) <= set(range(NUM_ROWS)) for used, bound in found.items())
    assert [found[(slot,)] for slot in range(NUM_ROWS)] == [range(slot, slot + 1) for slot in range(NUM_ROWS)]
    assert (found[2, 3], found[4, 5], found[1, 2], found[3, 4]) == (range(2, 4), range(4, 6), range(4), range(6))
    assert len(set(found.values())) <= 2 * NUM_ROWS
