"""Draws one token per row of logits by its rules, in order from penalties to min-p. Knows no sequences.

A row's token depends on its own logits and its own `Draw` alone: every operation works element by element or reduces
along one row in a fixed order, so a batch of any size gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ortserve.runtime.request import TokenLogprobs
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.exponential import Exponential, Floats
from ortserve.runtime.sampling.row_rules import apply_grammar, apply_rules
from ortserve.runtime.sampling.truncation import Ids, top_k, top_p

Pick: TypeAlias = Callable[[Floats, Sequence[Draw]], Ids]

_NOT_DRAWN = -1  # the row's logits are not finite numbers
_WHOLE_ROWS = 16_384  # ids: up to here the running sum of every id is cheaper than the calls that would avoid it
_SUM_BLOCK = 512  # weights per partial sum of the inverse CDF


@dataclass(frozen=True, slots=True)
class Drawn:
    """The token drawn at one position; None when the logits are not numbers."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """Tokens that have been drawn. Part of `Drawing`."""

    drawn: list[Drawn]

    @property
    def address(self) -> None:
        """They are on no device."""

    def wait(self) -> None:
        """There is nothing to wait for."""

    def result(self) -> list[Drawn]:
        """The tokens."""
        return self.drawn


class Sampler:
    """Draws for any number of rows; keeps scratch memory for a few."""

    def __init__(self, num_tokens: int, *, num_threads: int | None = None) -> None:
        """`num_tokens`: ids from here on are padding of the embedding and are never looked at."""
        self._num_tokens = num_tokens
        self._exponential = Exponential(num_tokens, num_threads=num_threads)

    def begin(self, logits: Floats, draws: Sequence[Draw]) -> Ready:
        """As `draw`; part of `TokenSampler`."""
        return Ready(self.draw(logits, draws))

    def draw(self, logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
        """One token for each row of `logits [rows, vocab]`, which is overwritten where rules apply."""
        assert len(logits) == len(draws)
        rows = logits[:, : self._num_tokens]
        raw = self._raw_rows(rows, draws)
        tokens = np.full(len(draws), _NOT_DRAWN, np.int64)
        among_all: list[int] = []
        for place, draw in enumerate(draws):
            apply_rules(rows[place], draw)
            few = apply_grammar(rows[place], draw)
            if few is None:
                among_all.append(place)
            else:
                tokens[place] = _draw_among(rows[place], few, draw)
        greedy = [place for place in among_all if draws[place].is_greedy]
        drawn = [place for place in among_all if not draws[place].is_greedy]
        plain = [place for place in drawn if not draws[place].is_truncated]
        narrowed = [place for place in drawn if draws[place].sampling.top_k > 0]
        truncated = [place for place in drawn if draws[place].is_truncated and draws[place].sampling.top_k == 0]
        for place in narrowed:
            tokens[place] = _draw_narrowed(rows[place], draws[place])
        for places, pick in ((greedy, _draw_greedy), (plain, self._draw_plain), (truncated, self._draw_truncated)):
            for values, chunk in self._chunks(rows, places):
                tokens[chunk] = pick(values, [draws[place] for place in chunk])
        return [_drawn(token, raw.get(place), draws[place]) for place, token in enumerate(tokens.tolist())]

    def score(self, logits: Floats, tokens: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs | None]:
        """How likely each row of `logits [rows, vocab]` makes the token given for it, and its most likely ones.

        None where the logits are no numbers. Changes nothing.
        """
        assert len(logits) == len(tokens) == len(num_top)
        found: list[TokenLogprobs | None] = []
        for values, chunk in self._chunks(logits[:, : self._num_tokens], list(range(len(tokens)))):
            normalizers = self._normalizers(values)
            for index, place in enumerate(chunk):
                row = _RawRow(values[index], normalizers[index])
                found.append(row.of(tokens[place], num_top[place]) if math.isfinite(normalizers[index]) else None)
        return found

    def _raw_rows(self, rows: Floats, draws: Sequence[Draw]) -> dict[int, _RawRow]:
        """What log-probabilities need of the raw logits, taken before penalties overwrite them, by place."""
        found: dict[int, _RawRow] = {}
        wanted = [place for place, draw in enumerate(draws) if draw.sampling.num_logprobs is not None]
        for values, chunk in self._chunks(rows, wanted):
            normalizers = self._normalizers(values)
            for index, place in enumerate(chunk):
                logits = values[index].copy() if _has_rules(draws[place]) else values[index]
                found[place] = _RawRow(logits, normalizers[index])
        return found

    def _normalizers(self, values: Floats) -> list[float]:
        """The logarithm of each row's sum of exponentials."""
        largest = values.max(axis=1)
        weights = self._exponential.weights(values, largest, np.ones(len(values)))
        normalizers = largest + np.log(weights.sum(axis=1, dtype=np.float64))
        return [float(normalizer) for normalizer in normalizers]

    def _chunks(self, rows: Floats, places: list[int]) -> Iterator[tuple[Floats, list[int]]]:
        """The rows at `places`, a cacheful at a time; neighbours are views, others copies."""
        for begin in range(0, len(places), self._exponential.max_rows):
            chunk = places[begin : begin + self._exponential.max_rows]
            are_neighbours = chunk[-1] - chunk[0] + 1 == len(chunk)
            yield rows[chunk[0] : chunk[-1] + 1] if are_neighbours else rows[chunk], chunk

    def _weights(self, values: Floats, draws: Sequence[Draw]) -> Floats:
        temperatures = np.array([draw.sampling.temperature for draw in draws])
        return self._exponential.weights(values, values.max(axis=1), temperatures)

    def _draw_plain(self, values: Floats, draws: Sequence[Draw]) -> Ids:
        """Inverse CDF in the order of the ids. How depends on the vocabulary alone: never on the batch."""
        weights = self._weights(values, draws)
        if self._num_tokens <= _WHOLE_ROWS:
            return _draw_from_rows(weights, draws)
        return np.array([_draw_from_blocks(row, draw) for row, draw in zip(weights, draws, strict=True)])

    def _draw_truncated(self, values: Floats, draws: Sequence[Draw]) -> Ids:
        """top-p and min-p over the whole vocabulary."""
        weights = self._weights(values, draws)
        return np.array([_draw_weighted(row, None, draw) for row, draw in zip(weights, draws, strict=True)])


@dataclass(frozen=True, slots=True)
class _RawRow:
    """Raw logits of one row and the logarithm of the sum of their exponentials."""

    logits: Floats
    normalizer: float

    def of(self, token: int, num_top: int) -> TokenLogprobs:
        ids = top_k(self.logits, num_top) if num_top else np.empty(0, np.int64)
        order = np.argsort(-self.logits[ids], kind="stable")
        top = tuple((int(id), self._logprob(int(id))) for id in ids[order])
        return TokenLogprobs(token, self._logprob(token), top)

    def _logprob(self, token: int) -> float:
        return float(self.logits[token]) - self.normalizer


def _draw_from_rows(weights: Floats, draws: Sequence[Draw]) -> Ids:
    """All rows at once, for small vocabularies."""
    reached = np.cumsum(weights, axis=1, dtype=np.float64)
    ends = reached[:, -1]
    targets = np.minimum(ends * [draw.uniform for draw in draws], np.nextafter(ends, 0.0))
    tokens = (reached <= targets[:, None]).sum(axis=1)
    return np.where(np.isfinite(ends), tokens, _NOT_DRAWN)


def _draw_from_blocks(weights: Floats, draw: Draw) -> int:
    """Partial sums of blocks first, then inside one block: a cumulative sum of a whole long row would cost more."""
    reached = np.cumsum(_block_sums(weights), dtype=np.float64)
    if not np.isfinite(reached[-1]):
        return _NOT_DRAWN
    block, rest = _locate(reached, reached[-1] * draw.uniform)
    inner = np.cumsum(weights[block * _SUM_BLOCK : (block + 1) * _SUM_BLOCK], dtype=np.float64)
    place, _ = _locate(inner, rest)
    return block * _SUM_BLOCK + place


def _draw_greedy(values: Floats, draws: Sequence[Draw]) -> Ids:
    assert len(values) == len(draws)
    tokens = values.argmax(axis=1)  # the first, so the lowest id, of equal values; a NaN counts as the largest
    return np.where(np.isfinite(values[np.arange(len(values)), tokens]), tokens, _NOT_DRAWN)


def _draw_narrowed(row: Floats, draw: Draw) -> int:
    """top-k first: what is left is small."""
    largest = row.max()
    if not np.isfinite(largest):
        return _NOT_DRAWN
    ids = top_k(row, draw.sampling.top_k)
    return _draw_weighted(_few_weights(row[ids], largest, draw), ids, draw)


def _draw_among(row: Floats, ids: Ids, draw: Draw) -> int:
    """One of a few allowed ids, ascending."""
    values = row[ids]
    if not len(ids) or not np.isfinite(values).any():
        return _NOT_DRAWN
    if len(ids) == 1:
        return int(ids[0])
    if draw.is_greedy:
        return int(ids[values.argmax()])
    largest = values.max()
    if draw.sampling.top_k > 0:
        places = top_k(values, draw.sampling.top_k)
        ids, values = ids[places], values[places]
    return _draw_weighted(_few_weights(values, largest, draw), ids, draw)


def _few_weights(values: Floats, largest: np.float32, draw: Draw) -> Floats:
    weights: Floats = np.exp((values - largest) * np.float32(1.0 / draw.sampling.temperature))
    return weights


def _draw_weighted(weights: Floats, ids: Ids | None, draw: Draw) -> int:
    """top-p, then min-p, then the draw; `ids` None: weights are of ids 0, 1, 2, ..."""
    sampling = draw.sampling
    if sampling.top_p < 1.0:
        total = float(weights.sum(dtype=np.float64))
        if not np.isfinite(total):
            return _NOT_DRAWN
        kept = top_p(weights, sampling.top_p, total)
        if kept is not None:
            ids, weights = _keep(ids, weights, kept)
    if sampling.min_p > 0.0:
        ids, weights = _keep(ids, weights, weights >= np.float32(sampling.min_p))
    if not len(weights):
        return _NOT_DRAWN  # NaN is not above any threshold
    reached = np.cumsum(weights, dtype=np.float64)
    place, _ = _locate(reached, reached[-1] * draw.uniform)
    return place if ids is None else int(ids[place])


def _block_sums(weights: Floats) -> Floats:
    """`[values]` to sums of blocks of `_SUM_BLOCK` values; einsum adds four times as fast as sum."""
    whole = len(weights) // _SUM_BLOCK * _SUM_BLOCK
    sums: Floats = np.einsum("bv->b", weights[:whole].reshape(-1, _SUM_BLOCK))
    return sums if whole == len(weights) else np.append(sums, weights[whole:].sum())


def _locate(reached: npt.NDArray[np.float64], target: float) -> tuple[int, float]:
    """The first place whose running sum exceeds `target`, and how far into it the target lies.

    A target that rounding has pushed to the end belongs to the last place with weight.
    """
    target = min(target, float(np.nextafter(reached[-1], 0.0)))
    place = min(int(np.searchsorted(reached, target, side="right")), len(reached) - 1)
    return place, target - (float(reached[place - 1]) if place else 0.0)


def _drawn(token: int, raw: _RawRow | None, draw: Draw) -> Drawn:
    if token == _NOT_DRAWN:
        return Drawn(None)
    return Drawn(token, None if raw is None else raw.of(token, draw.sampling.num_logprobs or 0))


def _keep(ids: Ids | None, weights: Floats, kept: npt.NDArray[np.bool_]) -> tuple[Ids, Floats]:
    return (np.flatnonzero(kept) if ids is None else ids[kept]), weights[kept]


def _has_rules(draw: Draw) -> bool:
    return draw.history is not None or bool(draw.sampling.logit_bias) or bool(draw.banned) or draw.allowed is not None
