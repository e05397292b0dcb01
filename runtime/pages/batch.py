"""Turns a Step into the packed arrays of the graph contract of layout "pages" and checks them before the run.

Knows no sessions and no sequences. Steps of few tokens are padded to buckets, so that recorded work fits them: plain
decodes to a number of rows, others (guesses to be verified, ends of prompts) to numbers of rows and of tokens.
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
LONGEST_PADDED = 32  # tokens of a row: more are a chunk, whose step takes long enough not to be recorded
ROOM_FOR_PADDING = 32  # logits rows that padding may need beyond those that a step may ask for


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
    is_padded: bool  # to buckets: of few shapes

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """T, B, M, L."""
        return len(self.input_ids), len(self.past_lengths), self.page_table.shape[1], len(self.logit_index)


def build_paged_batch(
    step: Step, *, block_size: int, max_rows: int, max_width: int, max_padded: int | None = None
) -> PagedBatch:
    """Pack the step's rows. `max_rows` and `max_width` bound the buckets, `max_padded` their tokens (none)."""
    _check(step, block_size=block_size)
    width = -(-max(row.end for row in step.rows) // block_size)
    if all(len(row.tokens) == 1 == row.num_logits for row in step.rows):
        bucket = max(row_bucket(len(step.rows), max_rows), len(step.rows))
        return _build_decode(step.rows, block_size, bucket, width_bucket(width, max_width))
    if max_padded is None or max(len(row.tokens) for row in step.rows) > LONGEST_PADDED:
        return _build_ragged(step.rows, block_size, width)
    num_rows = row_bucket(len(step.rows), max_rows) + 1  # the last takes what is missing of the tokens
    num_tokens = token_bucket(step.num_tokens + num_rows - len(step.rows))
    if num_tokens > max_padded:
        return _build_ragged(step.rows, block_size, width)
    ragged = _build_ragged(step.rows, block_size, width_bucket(width, max_width))
    return _padded(ragged, num_rows, num_tokens, block_size)


def row_bucket(num_rows: int, max_rows: int) -> int:
    """Rows that a step of plain decodes is padded to."""
    fine = next((size for size in _FINE_BUCKETS if size >= num_rows), None)
    return min(fine or -(-num_rows // _COARSE_BUCKET) * _COARSE_BUCKET, max_rows)


def token_bucket(num_tokens: int) -> int:
    """Tokens that a step of more than plain decodes is padded to."""
    size = 4 if num_tokens <= 16 else 8 if num_tokens <= 64 else 16
    return -(-num_tokens // size) * size


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
        attention_bounds=_bounds(1, width, block_size),
        is_decode=True,
        is_padded=True,
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
        is_padded=False,
    )


def _padded(batch: PagedBatch, num_rows: int, num_tokens: int, block_size: int) -> PagedBatch:
    """The same with rows of padding behind: one token each, and what is missing in the last.

    They feed token 0 from position 0 on, are stored nowhere, and read block 0. Every token may have logits.
    """
    count, width = batch.page_table.shape
    missing = num_tokens - len(batch.input_ids)
    lengths = np.ones(num_rows - count, np.int32)
    lengths[-1] += missing - len(lengths)
    ends = batch.cumulative_lengths[-1] + np.cumsum(lengths, dtype=np.int32)
    index = np.zeros(num_tokens, np.int64)
    index[: len(batch.logit_index)] = batch.logit_index
    return PagedBatch(
        input_ids=_extended(batch.input_ids, num_tokens, 0),
        position_ids=_extended(batch.position_ids, num_tokens, 0),
        logit_index=index,
        cumulative_lengths=np.concatenate([batch.cumulative_lengths, ends]),
        past_lengths=_extended(batch.past_lengths, num_rows, 0),
        slot_mapping=_extended(batch.slot_mapping, num_tokens, _NOWHERE),
        page_table=np.concatenate([batch.page_table, np.zeros((num_rows - count, width), np.int32)]),
        attention_bounds=_bounds(LONGEST_PADDED, width, block_size),
        is_decode=False,
        is_padded=True,
    )


def _extended(values: npt.NDArray[_Integer], size: int, filling: int) -> npt.NDArray[_Integer]:
    return np.concatenate([values, np.full(size - len(values), filling, values.dtype)])


def _bounds(longest: int, width: int, block_size: int) -> Int32Array:
    """Of all steps with this bucket of pages, whatever the lengths of their rows."""
    at_least = width // 2 * block_size + 1 if width == 1 << (width.bit_length() - 1) else 1
    return np.array([longest, width * block_size, at_least], np.int32)


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
