"""Turns a Step into the packed arrays of the graph contract of layout "pages" and checks them before the run.

Knows no sessions and no sequences. A step of few tokens is spread: each token becomes a row of its own, with the same
pages and one stored token more. Keys and values are stored before any are read, so that says the same, with the kernels
of plain decodes; and rows are padded to a bucket, so that recorded work fits them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ortserve.runtime.step import Row, Step

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
_Integer = TypeVar("_Integer", np.int32, np.int64)
_NOWHERE = -1  # slot of a token that is not stored
_FINE_BUCKETS = (1, 2, 4, 8)
_COARSE_BUCKET = 16  # above: the next multiple
# Tokens of a row, those of the longest draft and one more: a chunk of a prompt has kernels that read its pages once.
LONGEST_SPREAD = 17
ROOM_FOR_PADDING = _COARSE_BUCKET  # logits rows that padding may need beyond those that a step may ask for


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Inputs of one run: T packed tokens, B rows, M pages of the widest, L logits rows."""

    input_ids: Int64Array  # [T]
    position_ids: Int64Array  # [T], rows of the rotary tables
    logit_index: Int64Array  # [L]
    cumulative_lengths: Int32Array  # [B + 1]
    past_lengths: Int32Array  # [B]
    slot_mapping: Int32Array  # [T]
    page_table: Int32Array  # [B, M]
    attention_bounds: Int32Array  # [3]: longest query, longest row, and what the longest row has at least
    is_decode: bool  # every row is one token with logits
    is_spread: bool  # every row is one token, and their number one of few

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """T, B, M, L."""
        return len(self.input_ids), len(self.past_lengths), self.page_table.shape[1], len(self.logit_index)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What batches of one runner keep to."""

    num_rows: int  # sequences
    num_pages: int  # of a sequence
    num_spread: int = 0  # tokens of a step that may be spread
    num_read_again: int = 0  # stored tokens that spreading may have the device read once more


def build_paged_batch(step: Step, bounds: Bounds, *, block_size: int) -> PagedBatch:
    """Pack the step's rows."""
    _check(step, block_size=block_size)
    width = -(-max(row.end for row in step.rows) // block_size)
    if all(len(row.tokens) == 1 == row.num_logits for row in step.rows):
        bucket = max(row_bucket(len(step.rows), bounds.num_rows), len(step.rows))
        return _build_decode(step.rows, block_size, bucket, width_bucket(width, bounds.num_pages))
    ragged = _build_ragged(step.rows, block_size, width)
    again = sum((len(row.tokens) - 1) * row.end for row in step.rows)
    if step.longest > LONGEST_SPREAD or again > bounds.num_read_again or step.num_tokens > bounds.num_spread:
        return ragged
    bucket = row_bucket(step.num_tokens, bounds.num_spread)
    return _spread(ragged, bucket, width_bucket(width, bounds.num_pages), block_size)


def row_bucket(num_rows: int, max_rows: int) -> int:
    """Rows that a step of plain decodes is padded to."""
    fine = next((size for size in _FINE_BUCKETS if size >= num_rows), None)
    return min(fine or -(-num_rows // _COARSE_BUCKET) * _COARSE_BUCKET, max_rows)


def width_bucket(width: int, max_width: int) -> int:
    """Pages that a decode's table is padded to: a power of two."""
    power: int = 1 << (width - 1).bit_length()
    return min(power, max_width)


def _build_decode(rows: tuple[Row, ...], block_size: int, num_rows: int, width: int) -> PagedBatch:
    """Padding rows feed token 0 at position 0, are stored nowhere, and read one token of block 0."""
    count = len(rows)
    table = np.zeros((num_rows, width), np.int32)
    ids, positions, past, slots = ([0] * num_rows for _ in range(4))
    slots[count:] = [_NOWHERE] * (num_rows - count)
    for place, row in enumerate(rows):
        used = row.blocks[: row.start // block_size + 1]
        table[place, : len(used)] = used
        ids[place] = row.tokens[0]
        positions[place] = row.positions.start
        past[place] = row.start
        slots[place] = used[-1] * block_size + row.start % block_size
    return PagedBatch(
        input_ids=np.array(ids, np.int64),
        position_ids=np.array(positions, np.int64),
        logit_index=np.arange(num_rows, dtype=np.int64),
        cumulative_lengths=np.arange(num_rows + 1, dtype=np.int32),
        past_lengths=np.array(past, np.int32),
        slot_mapping=np.array(slots, np.int32),
        page_table=table,
        attention_bounds=_bounds(width, block_size),
        is_decode=True,
        is_spread=True,
    )


def _build_ragged(rows: tuple[Row, ...], block_size: int, width: int) -> PagedBatch:
    table = np.zeros((len(rows), width), np.int32)
    ids: list[int] = []
    cumulative = [0]
    logits: list[int] = []
    positions, slots = [], []
    for place, row in enumerate(rows):
        used = np.array(row.blocks[: -(-row.end // block_size)], np.int32)
        table[place, : len(used)] = used
        position = np.arange(row.start, row.end)
        positions.append(row.first_rotary_row + position)
        slots.append(used[position // block_size] * block_size + position % block_size)
        ids += row.tokens
        cumulative.append(len(ids))
        end = len(ids) - row.num_silent
        logits += range(end - row.num_logits, end)
    longest = max(row.end for row in rows)
    return PagedBatch(
        input_ids=np.array(ids, np.int64),
        position_ids=np.concatenate(positions),
        # The graph needs one wanted position at least; a middle chunk of a prompt wants none and drops it.
        logit_index=np.array(logits or [0], np.int64),
        cumulative_lengths=np.array(cumulative, np.int32),
        past_lengths=np.array([row.start for row in rows], np.int32),
        slot_mapping=np.concatenate(slots).astype(np.int32),
        page_table=table,
        attention_bounds=np.array([max(len(row.tokens) for row in rows), longest, longest], np.int32),
        is_decode=False,
        is_spread=False,
    )


def _spread(batch: PagedBatch, num_rows: int, width: int, block_size: int) -> PagedBatch:
    """The same tokens in the same order, each a row of its own, and padding as of decodes."""
    count = len(batch.input_ids)
    fed = np.diff(batch.cumulative_lengths)
    row = np.repeat(np.arange(len(fed)), fed)
    table = np.zeros((num_rows, width), np.int32)
    table[:count, : batch.page_table.shape[1]] = batch.page_table[row]
    before = (batch.past_lengths[row] + np.arange(count) - batch.cumulative_lengths[row]).astype(np.int32)
    return PagedBatch(
        input_ids=_extended(batch.input_ids, num_rows, 0),
        position_ids=_extended(batch.position_ids, num_rows, 0),
        logit_index=_extended(batch.logit_index, num_rows, 0),
        cumulative_lengths=np.arange(num_rows + 1, dtype=np.int32),
        past_lengths=_extended(before, num_rows, 0),
        slot_mapping=_extended(batch.slot_mapping, num_rows, _NOWHERE),
        page_table=table,
        attention_bounds=_bounds(width, block_size),
        is_decode=False,
        is_spread=True,
    )


def _extended(values: npt.NDArray[_Integer], size: int, filling: int) -> npt.NDArray[_Integer]:
    return np.concatenate([values, np.full(size - len(values), filling, values.dtype)])


def _bounds(width: int, block_size: int) -> Int32Array:
    """Of all rows of one token with this bucket of pages, however many they have stored."""
    at_least = width // 2 * block_size + 1 if width == 1 << (width.bit_length() - 1) else 1
    return np.array([1, width * block_size, at_least], np.int32)


def _check(step: Step, *, block_size: int) -> None:
    assert step.rows, "a run needs at least one row"
    written: set[int] = set()
    for row in step.rows:
        assert row.tokens, "a row feeds at least one token"
        assert row.start >= 0, "negative start"
        assert 0 <= row.num_logits <= len(row.tokens) - row.num_silent, "logits of tokens that are not fed"
        assert row.end <= len(row.blocks) * block_size, f"{len(row.blocks)} blocks do not hold {row.end} tokens"
        own = row.blocks[row.start // block_size : (row.end - 1) // block_size + 1]
        assert written.isdisjoint(own), "two rows write into one block"
        written.update(own)
