"""Draws every position of a step's rows and says how far their drafts hold. Lossless: drafts never change a token.

The ordinary sampler runs at each of the k + 1 positions as if the earlier drafts had been drawn, with the random number
of that position. A draft is accepted if and only if it equals the token drawn there, so the tokens are those of a run
without drafts, by seed and hence in distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Values

from ortserve.runtime.constraint import Mask
from ortserve.runtime.exponential import Floats
from ortserve.runtime.sampler import Draw, Drawn, Sampler
from ortserve.runtime.sequence import Sequence
from ortserve.runtime.step import Row


def draw_rows(
    sampler: Sampler,
    rows: Values[tuple[Row, Sequence]],
    logits: Floats,
    masks: Mapping[str, tuple[Mask, ...]],
) -> list[tuple[Drawn, ...]]:
    """For each row that has logits, the tokens it adds: its accepted drafts and the one drawn after them.

    `logits [sum of num_logits, vocab]` belong to the rows in order and are overwritten where rules apply. `masks` are
    of requests with a grammar, by id, at each of their positions.
    """
    draws: list[Draw] = []
    for row, sequence in rows:
        draws += sequence.draws(row.drafts, masks.get(row.request_id, ()))
    drawn = sampler.draw(logits, draws) if draws else []
    found: list[tuple[Drawn, ...]] = []
    begin = 0
    for row, _ in rows:
        found.append(_accepted(row.drafts, drawn[begin : begin + row.num_logits]))
        begin += row.num_logits
    assert begin == len(draws)
    return found


def _accepted(drafts: Values[int], drawn: Values[Drawn]) -> tuple[Drawn, ...]:
    for place, draft in enumerate(drafts):
        if drawn[place].token_id != draft:
            return tuple(drawn[: place + 1])
    return tuple(drawn)
