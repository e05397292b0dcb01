"""A grammar's mask on a row of logits, whatever share of the ids it allows."""

from __future__ import annotations

import numpy as np
import pytest

from ortserve.runtime.request import SamplingParams
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.row_rules import apply_grammar

NUM_IDS = 12_003  # no whole number of words, nor of bytes


def packed(allowed: np.ndarray, num_bytes: int, rest: int) -> np.ndarray:
    """Bits of `allowed`, and `rest` in all that mean nothing."""
    bits = np.full(num_bytes * 8, rest, np.uint8)
    bits[:NUM_IDS] = allowed
    return np.packbits(bits, bitorder="little")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.7, 0.999, 1.0])
@pytest.mark.parametrize("num_bytes", [1501, 1504])
@pytest.mark.parametrize("rest", [0, 1])
def test_only_allowed_ids_keep_their_logits(share: float, num_bytes: int, rest: int) -> None:
    chance = np.random.default_rng(0)
    allowed = chance.random(NUM_IDS) < share
    row = chance.normal(0, 1, NUM_IDS).astype(np.float32)
    expected = np.where(allowed, row, -np.inf)
    draw = Draw(SamplingParams(), 0, 0, 0, allowed=packed(allowed, num_bytes, rest))
    before = row.copy()
    few = apply_grammar(row, draw)
    if few is None:
        assert np.array_equal(row, expected)
    else:
        assert few[few < NUM_IDS].tolist() == np.flatnonzero(allowed).tolist()
        assert np.array_equal(row, before), "rows of which few ids are looked at are left alone"
