"""Top-k, top-p and min-p over one row, exactly and without sorting the vocabulary. Knows no requests and draws nothing.

All three cut a prefix of the order "most likely first, ties to the lowest id". Most of a row is never looked at twice:
block maxima bound where the k largest can be, and top-p narrows by value before it sorts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

BLOCK = 256  # values per block maximum: for k = 40 of 152,000 ids, 594 maxima and about 40 blocks to look into
_SORT_LIMIT = 4096
_NARROW = (1e-2, 1e-4, 1e-7)  # weights, relative to the largest, that top-p tries as a lower bound


def top_k(values: Floats, count: int) -> Ids:
    """Ids of the `count` largest of `values [n]`, ascending; equal values are taken from the lowest id."""
    if count >= len(values):
        return np.arange(len(values))
    ids = _candidates(values, count)
    chosen = values[ids]
    order = np.argsort(-chosen, kind="stable")[:count]  # stable: among equals the lowest id stays first
    return np.sort(ids[order])


def _candidates(values: Floats, count: int) -> Ids:
    """Ascending ids of a superset of the `count` largest: nothing below the count-th largest block maximum belongs."""
    num_whole = len(values) // BLOCK
    if num_whole <= count:
        bound = np.partition(values, len(values) - count)[len(values) - count]
        found: Ids = np.flatnonzero(values >= bound)
        return found
    maxima = values[: num_whole * BLOCK].reshape(num_whole, BLOCK).max(axis=1)
    bound = np.partition(maxima, num_whole - count)[num_whole - count]
    blocks = np.flatnonzero(maxima >= bound)
    ids = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    ids = np.concatenate([ids, np.arange(num_whole * BLOCK, len(values))])
    kept: Ids = ids[values[ids] >= bound]
    return kept


def top_p(weights: Floats, mass: float, total: float) -> npt.NDArray[np.bool_] | None:
    """Which of `weights [n]` (unnormalised, largest 1) form the smallest prefix with at least `mass` of `total`.

    The most likely one always stays. None: all of them.
    """
    wanted = mass * total
    for bound in _NARROW:
        candidates = weights[weights >= bound]
        if float(candidates.sum(dtype=np.float64)) >= wanted:
            break
    else:
        candidates = weights
    num_kept, threshold = _cut(candidates, wanted)
    if num_kept >= len(weights):
        return None
    kept: npt.NDArray[np.bool_] = weights > threshold
    ties = np.flatnonzero(weights == threshold)
    kept[ties[: num_kept - int(np.count_nonzero(kept))]] = True
    return kept


def _cut(weights: Floats, wanted: float) -> tuple[int, np.float32]:
    """How many of the largest weights reach `wanted` together, and the smallest of these.

    Positive floats order as their bits do: the upper 16 bits put all weights into buckets, and only the bucket in
    which the sum reaches `wanted` is sorted.
    """
    num_above, mass_above, inside = 0, 0.0, weights
    if len(weights) > _SORT_LIMIT:
        keys = weights.view(np.uint32) >> 16
        sums = np.cumsum(np.bincount(keys, weights=weights)[::-1])  # from the largest weights down
        # rounding may leave the last sum just below what is wanted: then the last bucket that adds anything is cut
        place = int(np.searchsorted(sums, min(wanted, float(sums[-1]))))
        bucket = len(sums) - 1 - place
        num_above = int(np.count_nonzero(keys > bucket))
        mass_above = float(sums[place - 1]) if place else 0.0
        inside = weights[keys == bucket]
    descending = np.sort(inside)[::-1]
    reached = mass_above + np.cumsum(descending, dtype=np.float64)
    # rounding may leave the last sum just below what is wanted: then all of them are kept
    place = min(int(np.searchsorted(reached, wanted)), len(descending) - 1)
    return num_above + place + 1, descending[place]
