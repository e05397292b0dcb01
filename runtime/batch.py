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
    position_ids: Int64Array  # [T]
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


def build_batch(step: Step, *, num_rows: int, capacity: int) -> Batch:
    """Pack the step's rows for a graph bound to the first `num_rows` slots of `capacity` tokens each.

    Slots without a row in this step are idle: query length 0, cache untouched.
    """
    starts = np.fromiter((row.start for row in step.rows), np.int64, len(step.rows))
    slots = np.fromiter((row.slot for row in step.rows), np.int64, len(step.rows))
    counts = np.fromiter((len(row.tokens) for row in step.rows), np.int64, len(step.rows))
    logits = np.fromiter((row.num_logits for row in step.rows), np.int64, len(step.rows))
    assert np.all((logits >= 0) & (logits <= counts)), "logits of tokens that are not fed"
    _check_places(starts, slots, counts, num_rows=num_rows, capacity=capacity)

    num_tokens, longest = int(counts.sum()), int(counts.max())
    ends = np.cumsum(counts)  # of each row among the packed tokens
    firsts = ends - counts
    within = np.arange(num_tokens) - np.repeat(firsts, counts)  # place of each token in its row

    seqlens_k = np.zeros(num_rows, np.int32)
    seqlens_k[slots] = starts + counts - 1
    query_lengths = np.zeros(num_rows, np.int32)
    query_lengths[slots] = counts
    pad_index = np.zeros((num_rows, longest), np.int64)
    pad_index[slots] = firsts[:, None] + np.minimum(np.arange(longest), counts[:, None] - 1)
    num_logits = int(logits.sum())
    logit_offset = np.arange(num_logits) - np.repeat(np.cumsum(logits) - logits, logits)
    return Batch(
        input_ids=np.concatenate([np.asarray(row.tokens, np.int64) for row in step.rows]),
        position_ids=np.repeat(starts, counts) + within,
        seqlens_k=seqlens_k,
        query_lengths=query_lengths,
        total_length=np.asarray(capacity, np.int32),
        pad_index=pad_index,
        unpad_index=np.repeat(slots * longest, counts) + within,
        logit_index=np.repeat(ends - logits, logits) + logit_offset,
    )


def _check_places(starts: Int64Array, slots: Int64Array, counts: Int64Array, *, num_rows: int, capacity: int) -> None:
    assert len(slots) > 0, "a run needs at least one row: batch 0 kills the process"
    assert slots.min() >= 0, "negative slot"
    assert slots.max() < num_rows, f"slot {slots.max()} beyond the {num_rows} bound rows"
    assert len(np.unique(slots)) == len(slots), "two rows share a slot"
    assert counts.min() >= 1, "a row feeds at least one token"
    assert starts.min() >= 0, "negative start"
    reach = int(starts.max() + counts.max())
    assert reach <= capacity, f"padded rows reach {reach}, the capacity is {capacity}"
