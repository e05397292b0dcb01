"""Rows of one batch never touch each other; bad numbers, padding and log-probabilities."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ortserve.runtime.request import SamplingParams
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.history import TokenHistory
from ortserve.runtime.sampling.sampler import Drawn, Sampler

Floats = npt.NDArray[np.float32]

NUM_TOKENS, VOCAB = 20_011, 20_032  # several rows to a chunk, and padding
SAMPLER = Sampler(NUM_TOKENS, num_threads=2)
SMALL = Sampler(900, num_threads=1)  # draws from whole rows, not from blocks
KINDS = (
    SamplingParams(temperature=0),
    SamplingParams(),
    SamplingParams(temperature=0.8, top_k=40),
    SamplingParams(temperature=1.2, top_p=0.9),
    SamplingParams(min_p=0.02),
    SamplingParams(top_k=30, top_p=0.7, min_p=0.1),
    SamplingParams(logit_bias=((7, 3.0),), frequency_penalty=0.5, repetition_penalty=1.2),
)


def rows_of(seed: int, count: int) -> Floats:
    return (np.random.default_rng(seed).standard_normal((count, VOCAB)) * 3).astype(np.float32)


def draws_of(seed: int, count: int) -> list[Draw]:
    generator = np.random.default_rng(seed)
    draws = []
    for place in range(count):
        kind = KINDS[int(generator.integers(len(KINDS)))]
        sampling = replace(kind, num_logprobs=[None, 0, 5][int(generator.integers(3))])
        history = TokenHistory(range(5)) if kind.repetition_penalty != 1.0 else None
        draws.append(Draw(sampling, seed, place, seed % 9, history, banned=(0,) if place % 3 == 0 else ()))
    return draws


@settings(max_examples=30)
@given(sampler=st.sampled_from([SAMPLER, SMALL]), seed=st.integers(0, 2**32), count=st.integers(1, 14), data=st.data())
def test_a_row_gives_the_same_token_and_logprobs_in_any_batch_and_order(
    sampler: Sampler, seed: int, count: int, data: st.DataObject
) -> None:
    logits, draws = rows_of(seed, count), draws_of(seed, count)
    alone = [sampler.draw(logits[place : place + 1].copy(), [draw])[0] for place, draw in enumerate(draws)]
    order = data.draw(st.permutations(range(count)))
    together = sampler.draw(logits[order].copy(), [draws[place] for place in order])
    assert together == [alone[place] for place in order]  # floats bit for bit


@pytest.mark.parametrize("sampler", [SAMPLER, SMALL])
@pytest.mark.parametrize("bad", [np.nan, np.inf, "all -inf"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_no_numbers_draw_nothing_and_leave_others_untouched(
    sampler: Sampler, bad: float | str, kind: SamplingParams
) -> None:
    logits = rows_of(3, 4)
    draws = [Draw(replace(kind, num_logprobs=2), 1, place, 0, TokenHistory(range(3))) for place in range(4)]
    expected = sampler.draw(logits.copy(), draws)
    if isinstance(bad, str):
        logits[2] = -np.inf
    else:
        logits[2, 500] = bad
    found = sampler.draw(logits, draws)
    assert found[2] == Drawn(None)
    assert [found[place] for place in (0, 1, 3)] == [expected[place] for place in (0, 1, 3)]


def test_a_finite_row_with_some_impossible_tokens_draws_from_the_others() -> None:
    logits = np.full((len(KINDS), VOCAB), -np.inf, np.float32)
    logits[:, [11, 19_000]] = [1.0, 0.5]
    found = SAMPLER.draw(logits, [Draw(kind, 1, 0, 0, TokenHistory((11,))) for kind in KINDS])
    assert {drawn.token_id for drawn in found} <= {11, 19_000}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [100.0, np.nan, np.inf])
def test_padded_ids_are_never_drawn_nor_listed_nor_looked_at(kind: SamplingParams, padding: float) -> None:
    logits = rows_of(4, 3)
    logits[:, NUM_TOKENS:] = padding
    draws = [Draw(replace(kind, num_logprobs=20), place, 0, 0, TokenHistory(())) for place in range(3)]
    found = SAMPLER.draw(logits.copy(), draws)
    logits[:, NUM_TOKENS:] = -1.0
    assert found == SAMPLER.draw(logits, draws)
    for drawn in found:
        assert drawn.token_id is not None
        assert drawn.logprobs is not None
        assert max(id for id, _ in drawn.logprobs.top) < NUM_TOKENS


def log_softmax(row: Floats) -> npt.NDArray[np.float64]:
    values = row[:NUM_TOKENS].astype(np.float64)
    values -= values.max()
    shifted: npt.NDArray[np.float64] = values - np.log(np.exp(values).sum())
    return shifted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_logprobs", [0, 1, 5, 20])
def test_logprobs_are_the_log_softmax_of_the_raw_logits(kind: SamplingParams, num_logprobs: int) -> None:
    logits = rows_of(num_logprobs, 5)
    logits[:, 17] = logits[:, 4]  # a tie
    draws = [
        Draw(replace(kind, num_logprobs=num_logprobs), 3, place, 0, TokenHistory(range(30)), banned=(2,))
        for place in range(5)
    ]
    raw = logits.copy()
    for row, drawn in zip(raw, SAMPLER.draw(logits, draws), strict=True):
        assert drawn.logprobs is not None
        expected = log_softmax(row)
        order = np.lexsort((np.arange(NUM_TOKENS), -expected))
        assert drawn.logprobs.token_id == drawn.token_id
        assert drawn.logprobs.logprob == pytest.approx(expected[drawn.token_id], abs=2e-6)
        assert [id for id, _ in drawn.logprobs.top] == order[:num_logprobs].tolist()
        for id, logprob in drawn.logprobs.top:
            assert logprob == pytest.approx(expected[id], abs=2e-6)
        # a reader compares these two: they must be the identical float
        assert all(logprob == drawn.logprobs.logprob for id, logprob in drawn.logprobs.top if id == drawn.token_id)


def test_nobody_gets_logprobs_who_did_not_ask() -> None:
    draws = [Draw(SamplingParams(num_logprobs=number), 1, 0, 0) for number in (None, 0, None)]
    found = SAMPLER.draw(rows_of(1, 3), draws)
    assert [drawn.logprobs is not None for drawn in found] == [False, True, False]


def test_the_most_likely_of_a_tie_are_listed_by_id() -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [9, 3, 12_000]] = 1.0
    (drawn,) = SAMPLER.draw(logits, [Draw(SamplingParams(temperature=0, num_logprobs=5), 0, 0, 0)])
    assert drawn.logprobs is not None
    assert [id for id, _ in drawn.logprobs.top] == [3, 9, 12_000, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_random_numbers_reach_only_tokens_with_weight(kind: SamplingParams) -> None:
    logits = np.full((1, VOCAB), -np.inf, np.float32)
    logits[0, [600, 601, 19_500]] = [0.0, 0.1, 0.2]
    extremes = sorted((Draw(kind, seed, 0, 0).uniform, seed) for seed in range(5_000))
    for _, seed in itertools.chain(extremes[:3], extremes[-3:]):
        (drawn,) = SAMPLER.draw(logits.copy(), [Draw(kind, seed, 0, 0, TokenHistory(()))])
        assert drawn.token_id in {600, 601, 19_500}
