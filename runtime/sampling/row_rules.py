"""What a request's rules and its grammar do to one row of logits. Draws nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ortserve.runtime.grammar.constraint import Bits
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.exponential import Floats
from ortserve.runtime.sampling.truncation import Ids

_FEW = 4096  # ids that a grammar allows: up to here only they are looked at, and the rest of the row is left alone


def apply_rules(row: Floats, draw: Draw) -> None:
    """Penalties, then bias, then bans, in place."""
    sampling = draw.sampling
    if draw.history is not None:
        ids, counts = draw.history.ids, draw.history.counts
        values = row[ids]
        penalty = np.float32(sampling.repetition_penalty)
        if penalty != 1.0:
            values = np.where(values > 0, values / penalty, values * penalty)
        values -= counts * np.float32(sampling.frequency_penalty)
        values -= (counts > 0) * np.float32(sampling.presence_penalty)
        row[ids] = values
    for token, bias in sampling.logit_bias:
        row[token] += np.float32(bias)
    if draw.banned:
        row[list(draw.banned)] = -np.inf


def apply_grammar(row: Floats, draw: Draw) -> Ids | None:
    """The allowed ids where they are few; None otherwise, after those that are not allowed are ruled out in place."""
    if draw.allowed is None:
        return None
    words = _words(draw.allowed)
    num_allowed = int(np.bitwise_count(words).sum())
    if num_allowed <= _FEW:
        return _ids_in(words)
    if len(row) - num_allowed <= _FEW:  # as inside a string: some hundred of a vocabulary
        ids = _ids_in(~words)
        row[ids[: np.searchsorted(ids, len(row))]] = -np.inf  # behind the last id the bits mean nothing
    else:
        row[np.unpackbits(~draw.allowed, count=len(row), bitorder="little").view(np.bool_)] = -np.inf
    return None


def _words(bits: Bits) -> npt.NDArray[np.uint32]:
    """A packed mask 32 ids at a time: NumPy looks through words several times as fast as through bytes."""
    missing = -len(bits) % 4
    return (np.pad(bits, (0, missing)) if missing else bits).view(np.uint32)


def _ids_in(words: npt.NDArray[np.uint32]) -> Ids:
    """The ids of a packed mask, ascending. Words without any are never unpacked: few ids cost little."""
    places = np.flatnonzero(words != 0)  # of booleans twice as fast as of numbers
    offsets = np.flatnonzero(np.unpackbits(words[places].view(np.uint8), bitorder="little").view(np.bool_))
    ids: Ids = places[offsets >> 5] * 32 + (offsets & 31)
    return ids
