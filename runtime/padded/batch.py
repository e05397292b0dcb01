"""Sorts the rows of a Step into groups that a padded graph runs at once, and packs their tokens. Knows no sessions.

Rows of one group are padded to its longest, so rows of like lengths belong together; and kernels have rules about which
rows may share a run at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from ortserve.runtime.padded_graph import PaddedGraph
from ortserve.runtime.step import Row

SMALL_GROUP = 4096  # stored places, padding included, that a group may always have
MAX_PADDING = 2  # of more, this many times the stored tokens
MAX_LOGITS = 1 << 26  # values of one run: 256 MiB; a single row may have more
Integers = npt.NDArray[np.signedinteger]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one run; `places` says where the step has them."""

    rows: tuple[Row, ...]
    places: tuple[int, ...]

    @property
    def num_past(self) -> int:
        """P: the most stored tokens of a row."""
        return max(row.start for row in self.rows)

    @property
    def num_new(self) -> int:
        """S: the most new tokens of a row."""
        return max(len(row.tokens) for row in self.rows)


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Inputs of one run."""

    input_ids: Integers  # [B, S]
    attention_mask: Integers  # [B, P + S]
    position_ids: Integers  # [B, S]
    last_places: npt.NDArray[np.int32]  # [B]
    past_begins: tuple[int, ...]  # for each row the first of the P places that holds a token
    new_begins: tuple[int, ...]  # for each row the first of the P + S places that is new


def form_groups(rows: tuple[Row, ...], graph: PaddedGraph, *, vocab_size: int) -> Iterator[Group]:
    """Every row once, in groups that may run at once and are not mostly padding."""
    places = sorted(range(len(rows)), key=lambda place: (_kind(rows[place], graph), rows[place].start))
    for _, found in groupby(places, key=lambda place: _kind(rows[place], graph)):
        yield from _bounded([(place, rows[place]) for place in found], vocab_size)


def _kind(row: Row, graph: PaddedGraph) -> tuple[int, ...]:
    """Rows of different kinds never share a run. The number of new tokens counts by its order of magnitude."""
    size = (len(row.tokens) - 1).bit_length()
    if graph.attention == "concatenated":
        return (size, row.start) if graph.wants_equal_lengths else (size,)
    # GroupQueryAttention takes several new tokens after stored ones of a single row only
    if size > 0 and row.start > 0:
        return (size, 1, row.slot)
    return (size, 0)


def _bounded(found: Iterable[tuple[int, Row]], vocab_size: int) -> Iterator[Group]:
    """`found` in order of stored tokens, cut where a group would become too large."""
    group: list[tuple[int, Row]] = []
    for place, row in found:
        wider = [*group, (place, row)]
        num_rows, num_stored = len(wider), sum(one.start for _, one in wider)
        longest = max(len(one.tokens) for _, one in wider)
        is_padded = num_rows * row.start > max(SMALL_GROUP, MAX_PADDING * num_stored)
        if group and (is_padded or num_rows * longest * vocab_size > MAX_LOGITS):
            yield _group(group)
            wider = [(place, row)]
        group = wider
    if group:
        yield _group(group)


def _group(found: list[tuple[int, Row]]) -> Group:
    places, rows = zip(*found, strict=True)
    return Group(rows, places)


def build_padded_batch(group: Group, graph: PaddedGraph) -> PaddedBatch:
    """Pack the rows of one group."""
    num_rows, num_past, num_new = len(group.rows), group.num_past, group.num_new
    dtype = np.dtype(graph.integers)
    input_ids, position_ids = np.zeros((num_rows, num_new), dtype), np.zeros((num_rows, num_new), dtype)
    attention_mask = np.zeros((num_rows, num_past + num_new), dtype)
    past_begins: list[int] = []
    new_begins: list[int] = []
    for index, row in enumerate(group.rows):
        count = len(row.tokens)
        input_ids[index, :count] = row.tokens
        position_ids[index, :count] = np.arange(row.start, row.end)
        begin = 0 if graph.attention == "grouped" else num_past - row.start
        attention_mask[index, begin : begin + row.end] = 1
        past_begins.append(begin)
        new_begins.append(begin + row.start)
    return PaddedBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        last_places=np.array([row.end - 1 for row in group.rows], np.int32),
        past_begins=tuple(past_begins),
        new_begins=tuple(new_begins),
    )
