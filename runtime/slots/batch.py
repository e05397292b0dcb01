"""Turns a Step into the packed arrays of the graph contract (runtime/manifest.py) and checks them before the run.

Knows no sessions and no sequences. A violated contract would abort the whole run inside the kernel, so it is found
here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ortserve.runtime.step import Step

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one run: T packed tokens, B rows, S longest query, L logits rows."""

    input_ids: Int64Array  # [T]
    position_ids: Int64Array  # [T], rows of the rotary tables
    seqlens_k: Int32Array  # [B]
    query_lengths: Int32Array  # [B]
    total_length: Int32Array  # []
    pad_index: Int64Array  # [B, S]
    unpad_index: Int64Array  # [T]
    logit_index: Int64Array  # [L]

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.query_lengths)


def build_batch(step: Step, *, num_rows: int, capacity: int, first_slot: int = 0, even: bool = False) -> Batch:
    """Pack the step's rows for a graph bound to `num_rows` slots of `capacity` tokens each, from `first_slot` on.

    Slots without a row in this step are idle: query length 0, cache untouched. `even` adds a token to an odd number of
    them: no row attends to it and nobody reads what comes of it. Plain lists first: most steps feed a
    token or two per row, and a NumPy call costs more than a loop over sixteen rows.
    """
    _check(step, slots=range(first_slot, first_slot + num_rows), capacity=capacity)
    longest = max(len(row.tokens) for row in step.rows)
    input_ids: list[int] = []
    position_ids: list[int] = []
    unpad_index: list[int] = []
    logit_index: list[int] = []
    seqlens_k = [0] * num_rows
    query_lengths = [0] * num_rows
    pad_index = np.zeros((num_rows, longest), np.int64)
    for row in step.rows:
        first, count = len(input_ids), len(row.tokens)
        place = row.slot - first_slot
        input_ids += row.tokens
        position_ids += row.positions
        unpad_index += range(place * longest, place * longest + count)
        end = first + count - row.num_silent
        logit_index += range(end - row.num_logits, end)
        seqlens_k[place] = row.end - 1
        query_lengths[place] = count
        pad_index[place, :count] = range(first, first + count) if count > 1 else first
    if even and len(input_ids) % 2:
        input_ids.append(0)
        position_ids.append(0)
        unpad_index.append(0)
    return Batch(
        input_ids=np.array(input_ids, np.int64),
        position_ids=np.array(position_ids, np.int64),
        seqlens_k=np.array(seqlens_k, np.int32),
        query_lengths=np.array(query_lengths, np.int32),
        total_length=np.array(capacity, np.int32),
        pad_index=pad_index,
        unpad_index=np.array(unpad_index, np.int64),
        logit_index=np.array(logit_index, np.int64),
    )


def _check(step: Step, *, slots: range, capacity: int) -> None:
    assert step.rows, "a run needs at least one row: batch 0 kills the process"
    assert len({row.slot for row in step.rows}) == len(step.rows), "two rows share a slot"
    for row in step.rows:
        assert row.slot in slots, f"slot {row.slot} is none of {slots.start} to {slots.stop - 1}, which are bound"
        assert row.tokens, "a row feeds at least one token"
        assert row.start >= 0, "negative start"
        assert 0 <= row.num_logits <= len(row.tokens) - row.num_silent, "logits of tokens that are not fed"
    reach = max(row.start for row in step.rows) + max(len(row.tokens) for row in step.rows)
    assert reach <= capacity, f"padded rows reach {reach}, the capacity is {capacity}"
