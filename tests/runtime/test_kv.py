"""KV memory: moves are exact to the bit, what is released is no longer resident, and nothing else is touched."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ortserve.runtime.errors import MemoryBudgetError
from ortserve.runtime.manifest import KvLayout
from ortserve.runtime.slots.kv import PAGE_BYTES, SlotKvStore, block_size
from ortserve.runtime.step import CopyRow, ReleaseRow, SwapIn, SwapOut
from tests.runtime.residency import resident_bytes

LAYOUT = KvLayout(kind="slots", num_layers=2, num_kv_heads=3, head_dim=32, dtype="float32")
BLOCK = block_size(LAYOUT)
CAPACITY = 4 * BLOCK
NUM_ROWS, NUM_HOST_BLOCKS = 3, 6
ROW_BYTES = 3 * CAPACITY * 32 * 4  # of one tensor

Bits = npt.NDArray[np.uint32]


def new_store() -> SlotKvStore:
    return SlotKvStore(LAYOUT, num_rows=NUM_ROWS, capacity=CAPACITY, num_host_blocks=NUM_HOST_BLOCKS)


def fill(store: SlotKvStore, slot: int, num_tokens: int, seed: int) -> Bits:
    """Write random bit patterns (NaN and denormals among them) as the graph would, and return them."""
    bits = np.random.default_rng(seed).integers(0, 2**32, (4, 3, num_tokens, 32), np.uint32)
    store._rows.view(np.uint32)[:, slot, :, :num_tokens] = bits
    return bits


def bits_of(store: SlotKvStore, slot: int, num_tokens: int) -> Bits:
    return store.row(slot, num_tokens).view(np.uint32)


def rows_resident(store: SlotKvStore) -> int:
    return resident_bytes(store.tensors()[0].address, store._rows.nbytes)


def host_resident(store: SlotKvStore) -> int:
    return resident_bytes(int(store._host.ctypes.data), store._host.nbytes)


@settings(max_examples=40)
@given(
    num_tokens=st.integers(1, CAPACITY),
    blocks=st.permutations(range(NUM_HOST_BLOCKS)),
    slots=st.permutations(range(NUM_ROWS)),
    seed=st.integers(0, 2**32),
)
def test_what_is_swapped_out_comes_back_bit_for_bit_into_any_row(
    num_tokens: int, blocks: list[int], slots: list[int], seed: int
) -> None:
    store = new_store()
    source, target, other = slots
    bits, untouched = fill(store, source, num_tokens, seed), fill(store, other, CAPACITY, seed + 1)
    used = tuple(blocks[: -(-num_tokens // BLOCK)])
    store.apply((SwapOut("r", source, num_tokens, used),))
    fill(store, source, CAPACITY, seed + 2)  # somebody else takes the row meanwhile
    store.apply((SwapIn("r", target, num_tokens, used),))
    assert np.array_equal(bits_of(store, target, num_tokens), bits)
    assert np.array_equal(bits_of(store, other, CAPACITY), untouched)


@settings(max_examples=20)
@given(first=st.integers(1, 2 * BLOCK), second=st.integers(1, 2 * BLOCK), seed=st.integers(0, 2**32))
def test_two_sequences_swapped_at_once_do_not_mix(first: int, second: int, seed: int) -> None:
    store = new_store()
    bits = fill(store, 0, first, seed), fill(store, 1, second, seed + 1)
    outs = (
        SwapOut("a", 0, first, (4, 1)[: -(-first // BLOCK)]),
        SwapOut("b", 1, second, (0, 5)[: -(-second // BLOCK)]),
    )
    store.apply(outs)
    # exchanged, in one step's moves
    store.apply((SwapIn("b", 0, second, outs[1].host_blocks), SwapIn("a", 1, first, outs[0].host_blocks)))
    assert np.array_equal(bits_of(store, 1, first), bits[0])
    assert np.array_equal(bits_of(store, 0, second), bits[1])


def test_moves_of_one_step_are_executed_in_order() -> None:
    store = new_store()
    bits = fill(store, 0, BLOCK, 1)
    later = fill(store, 2, BLOCK, 2)
    store.apply((SwapOut("a", 0, BLOCK, (3,)), CopyRow("b", 2, 0, BLOCK), ReleaseRow(2), SwapIn("a", 2, BLOCK, (3,))))
    assert np.array_equal(bits_of(store, 0, BLOCK), later)
    assert np.array_equal(bits_of(store, 2, BLOCK), bits)


@settings(max_examples=20)
@given(st.integers(1, CAPACITY), st.integers(0, 2**32))
def test_a_copied_row_begins_with_the_others_bits_and_keeps_its_own_rest(num_tokens: int, seed: int) -> None:
    store = new_store()
    source, target = fill(store, 2, CAPACITY, seed), fill(store, 0, CAPACITY, seed + 1)
    store.apply((CopyRow("r", 2, 0, num_tokens),))
    assert np.array_equal(bits_of(store, 0, CAPACITY)[:, :, :num_tokens], source[:, :, :num_tokens])
    assert np.array_equal(bits_of(store, 0, CAPACITY)[:, :, num_tokens:], target[:, :, num_tokens:])
    assert np.array_equal(bits_of(store, 2, CAPACITY), source)


def test_nothing_is_resident_before_it_is_written() -> None:
    store = SlotKvStore(LAYOUT, num_rows=64, capacity=1_024 * BLOCK, num_host_blocks=1_000)
    assert store._rows.nbytes > 2**30
    assert rows_resident(store) == host_resident(store) == 0


def test_one_token_makes_a_page_per_head_resident_and_not_a_huge_page() -> None:
    store = SlotKvStore(LAYOUT, num_rows=1, capacity=1_024 * BLOCK, num_host_blocks=0)
    fill(store, 0, 1, 1)
    assert rows_resident(store) == 4 * 3 * PAGE_BYTES


def test_a_released_row_gives_all_its_pages_back_and_no_others() -> None:
    store = new_store()
    bits = [fill(store, slot, CAPACITY, slot) for slot in range(NUM_ROWS)]
    assert rows_resident(store) == store._rows.nbytes == 4 * NUM_ROWS * ROW_BYTES
    store.apply((ReleaseRow(1),))
    assert rows_resident(store) == 4 * (NUM_ROWS - 1) * ROW_BYTES
    for slot in (0, 2):
        assert np.array_equal(bits_of(store, slot, CAPACITY), bits[slot])
    assert not bits_of(store, 1, CAPACITY).any()
    store.apply((ReleaseRow(1), ReleaseRow(0), ReleaseRow(2)))
    assert rows_resident(store) == 0


def test_swapping_moves_residency_from_the_row_to_the_blocks_and_back() -> None:
    store = new_store()
    fill(store, 0, 2 * BLOCK + 1, 1)
    store.apply((SwapOut("r", 0, 2 * BLOCK + 1, (5, 0, 2)),))
    assert rows_resident(store) == 0
    full, begun = 4 * 3 * BLOCK * 32 * 4, 4 * 3 * PAGE_BYTES
    assert host_resident(store) == 2 * full + begun
    store.apply((SwapIn("r", 1, 2 * BLOCK + 1, (5, 0, 2)),))
    assert host_resident(store) == 0
    assert rows_resident(store) == 2 * full + begun


@pytest.mark.parametrize("head_dim", [8, 40, 64, 72, 80, 96, 120, 128, 256])
def test_rows_of_every_usual_head_size_begin_on_pages_and_release_whole_pages(head_dim: int) -> None:
    layout = KvLayout(kind="slots", num_layers=1, num_kv_heads=1, head_dim=head_dim, dtype="float32")
    store = SlotKvStore(layout, num_rows=3, capacity=2 * block_size(layout), num_host_blocks=1)
    store._rows[:] = 1.0
    store.apply((ReleaseRow(1),))
    assert store._rows[:, 0].all()
    assert store._rows[:, 2].all()
    assert rows_resident(store) == store._rows.nbytes * 2 // 3


def test_tensors_are_named_by_layer_and_kind_and_lie_one_after_another() -> None:
    store = new_store()
    tensors = store.tensors()
    assert [tensor.name for tensor in tensors] == ["0.key", "0.value", "1.key", "1.value"]
    assert {tensor.row_shape for tensor in tensors} == {(3, CAPACITY, 32)}
    steps = {right.address - left.address for left, right in pairwise(tensors)}
    assert steps == {NUM_ROWS * ROW_BYTES}
    store._rows[2, 1, 0, 0, 0] = 7.0
    assert store.row(1, 1)[2, 0, 0, 0] == 7.0


def test_a_capacity_of_broken_blocks_is_a_defect_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="whole number of blocks"):
        SlotKvStore(LAYOUT, num_rows=1, capacity=BLOCK + 1, num_host_blocks=0)


def test_too_much_address_space_is_one_line_that_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError(12, "Cannot allocate memory"), OverflowError("too large")):

        def refuse(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("mmap.mmap", refuse)
        with pytest.raises(
            MemoryBudgetError, match=r"cannot map \d+\.\d MiB .* lower --max-rows or --max-context"
        ) as found:
            new_store()
        assert "\n" not in str(found.value)
