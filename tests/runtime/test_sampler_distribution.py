"""Frequencies of drawn tokens against the distribution that the parameters describe, with fixed seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from ortserve.runtime.request import SamplingParams
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.sampler import Sampler

Doubles = npt.NDArray[np.float64]

NUM_DRAWS = 4_000
SIZE = 30
SAMPLER = Sampler(SIZE, num_threads=1)
LOGITS = np.linspace(-3.0, 2.0, SIZE).astype(np.float32)[np.random.default_rng(5).permutation(SIZE)]


def described(sampling: SamplingParams) -> Doubles:
    """Probabilities by the textbook: temperature, then top-k, then top-p, then min-p."""
    weights = np.exp(LOGITS.astype(np.float64) / sampling.temperature)
    weights /= weights.sum()
    order = np.argsort(-weights)
    if sampling.top_k:
        weights[order[sampling.top_k :]] = 0.0
        weights /= weights.sum()
    if sampling.top_p < 1:
        reached = np.cumsum(weights[order])
        weights[order[int(np.searchsorted(reached, sampling.top_p)) + 1 :]] = 0.0
    weights[weights < sampling.min_p * weights.max()] = 0.0
    normalized: Doubles = weights / weights.sum()
    return normalized


def counts_of(draws: list[Draw]) -> npt.NDArray[np.int64]:
    found = SAMPLER.draw(np.tile(LOGITS, (len(draws), 1)), draws)
    return np.bincount([-1 if drawn.token_id is None else drawn.token_id for drawn in found], minlength=SIZE)


def assert_distributed(counts: npt.NDArray[np.int64], probabilities: Doubles) -> None:
    """Chi-square within five standard deviations; cells expected below 5 times are joined."""
    assert counts[probabilities == 0].sum() == 0, "a token that was cut has been drawn"
    expected = probabilities * counts.sum()
    large = expected >= 5
    observed = np.append(counts[large], counts[~large].sum())
    wanted = np.append(expected[large], expected[~large].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    assert statistic < freedom + 5 * (2 * max(freedom, 1)) ** 0.5


CASES = {
    "plain": SamplingParams(),
    "cold": SamplingParams(temperature=0.5),
    "hot": SamplingParams(temperature=2.5),
    "top-k": SamplingParams(top_k=6),
    "top-k cold": SamplingParams(top_k=6, temperature=0.6),
    "top-p": SamplingParams(top_p=0.75),
    "top-p hot": SamplingParams(top_p=0.75, temperature=1.7),
    "min-p": SamplingParams(min_p=0.2),
    "min-p cold": SamplingParams(min_p=0.2, temperature=0.7),
    "all": SamplingParams(temperature=1.5, top_k=20, top_p=0.9, min_p=0.25),
}


@pytest.mark.parametrize(
    ("name", "axis"), [*((name, "position") for name in CASES), ("plain", "seed"), ("plain", "choice")]
)
def test_tokens_come_as_often_as_described(name: str, axis: str) -> None:
    draw = Draw(CASES[name], 99, 1, 4)
    draws = [replace(draw, **{axis: number}) for number in range(NUM_DRAWS)]  # type: ignore[arg-type]
    assert_distributed(counts_of(draws), described(CASES[name]))


def test_a_wrong_distribution_would_be_noticed() -> None:
    """The bound is tight enough to tell neighbouring settings apart."""
    draws = [Draw(SamplingParams(), 99, 1, number) for number in range(NUM_DRAWS)]
    counts = counts_of(draws)
    for other in (SamplingParams(temperature=1.2), SamplingParams(top_p=0.97), SamplingParams(min_p=0.02)):
        with pytest.raises(AssertionError):
            assert_distributed(counts, described(other))


def test_tokens_of_neighbouring_choices_and_positions_are_independent() -> None:
    count = 3_000
    hot = SamplingParams(temperature=3.0)
    draws = [Draw(hot, 7, choice, position) for choice in range(2) for position in range(count)]
    found = SAMPLER.draw(np.tile(LOGITS, (2 * count, 1)), draws)
    first, second = np.array([drawn.token_id for drawn in found], np.int64).reshape(2, count) // 3
    for left, right in ((first, second), (first[:-1], first[1:])):
        joint = np.zeros((10, 10))
        np.add.at(joint, (left, right), 1)
        product = joint.sum(axis=1)[:, None] * joint.sum(axis=0)[None] / joint.sum()
        statistic = float(((joint - product) ** 2 / product).sum())
        assert statistic < 81 + 5 * (2 * 81) ** 0.5
