"""The random number of a position: known answers of SplitMix64, uniform, and independent across what keys it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.runtime.sampling.uniform import uniform

U64 = np.uint64


def splitmix64(seed: int) -> Iterator[int]:
    """The published generator, in wrapping 64-bit arithmetic (prng.di.unimi.it/splitmix64.c)."""
    state = np.array([seed & (2**64 - 1)], U64)
    while True:
        state = state + U64(0x9E3779B97F4A7C15)
        mixed = state.copy()
        mixed = (mixed ^ (mixed >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> U64(27))) * U64(0x94D049BB133111EB)
        yield int((mixed ^ (mixed >> U64(31)))[0])


def nth(seed: int, place: int) -> int:
    return next(islice(splitmix64(seed), place, None))


def chi_square_is_plausible(counts: npt.NDArray[np.int64]) -> bool:
    """Five standard deviations around the mean of the statistic, for equally likely cells."""
    expected = counts.sum() / counts.size
    statistic = float(((counts - expected) ** 2).sum() / expected)
    freedom = counts.size - 1
    return abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def test_the_reference_generator_gives_the_published_numbers() -> None:
    assert list(islice(splitmix64(1234567), 3)) == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert list(islice(splitmix64(0), 2)) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@given(st.integers(-(2**70), 2**70), st.integers(0, 40), st.integers(0, 40))
def test_a_number_is_an_output_of_a_generator_started_by_seed_and_choice(seed: int, choice: int, position: int) -> None:
    start = nth(nth(seed, 0), choice)
    assert uniform(seed, choice, position) == (nth(start, position) >> 11) / 2**53


def test_known_answers_never_change() -> None:
    """Replies of earlier versions with the same seed depend on them."""
    found = [uniform(0, 0, 0), uniform(0, 0, 1), uniform(0, 1, 0), uniform(42, 3, 1000)]
    assert [int(value * 2**53) for value in found] == [
        *(0x4704EB7871F97, 0x1F1344ACD6B045, 0x5E203FC4292DD, 0x100D11E1EF87E6)
    ]


def test_only_the_lowest_64_bits_of_a_seed_count() -> None:
    assert uniform(5, 1, 2) == uniform(5 + 2**64, 1, 2) == uniform(5 - 2**64, 1, 2)
    assert uniform(5, 1, 2) != uniform(5 + 2**63, 1, 2)


@pytest.mark.parametrize("axis", ["seed", "choice", "position"])
def test_numbers_are_uniform_along_every_axis(axis: str) -> None:
    keys = {"seed": 7, "choice": 1, "position": 3}
    values = np.array([uniform(**{**keys, axis: number}) for number in range(20_000)])
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert chi_square_is_plausible(np.histogram(values, 100, (0.0, 1.0))[0])
    # the last of the 53 bits are as random as the first
    low_bits = (values * 2**53).astype(np.int64) % 64
    assert chi_square_is_plausible(np.bincount(low_bits, minlength=64))


@pytest.mark.parametrize("axis", ["seed", "choice", "position"])
def test_neighbours_along_every_axis_are_independent(axis: str) -> None:
    keys = {"seed": 11, "choice": 2, "position": 5}
    values = np.array([uniform(**{**keys, axis: number}) for number in range(20_001)])
    cells = np.histogram2d(values[:-1], values[1:], 16, ((0.0, 1.0), (0.0, 1.0)))[0].astype(np.int64)
    assert chi_square_is_plausible(cells)
    assert abs(float(np.corrcoef(values[:-1], values[1:])[0, 1])) < 5 / 20_000**0.5


def test_no_two_keys_of_a_small_cube_share_a_number() -> None:
    values = {uniform(seed, choice, position) for seed in range(20) for choice in range(20) for position in range(20)}
    assert len(values) == 20**3
