"""Softmax weights: the same bits in any company, and close to the true exponential."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ortserve.runtime.sampling.exponential import Exponential

Floats = npt.NDArray[np.float32]

SIZES = (1, 7, 1_000, 20_011, 152_064)


def random_rows(num_rows: int, size: int) -> tuple[Floats, npt.NDArray[np.float64]]:
    generator = np.random.default_rng(size)
    logits = (generator.standard_normal((num_rows, size)) * 8).astype(np.float32)
    return logits, generator.uniform(0.2, 2.0, num_rows)


def weights_of(exponential: Exponential, logits: Floats, temperatures: npt.NDArray[np.float64]) -> Floats:
    return exponential.weights(logits, logits.max(axis=1), temperatures).copy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(size: int, num_threads: int) -> None:
    alone = Exponential(size, num_threads=1)
    shared = Exponential(size, num_threads=num_threads)
    logits, temperatures = random_rows(min(shared.max_rows, 6), size)
    together = weights_of(shared, logits, temperatures)
    for row in range(len(logits)):
        one = weights_of(alone, logits[row : row + 1], temperatures[row : row + 1])
        assert together[row].tobytes() == one.tobytes()
    backwards = weights_of(shared, logits[::-1], temperatures[::-1])
    assert backwards[::-1].tobytes() == together.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_weights_are_within_a_few_roundings_of_the_exponential(size: int) -> None:
    exponential = Exponential(size, num_threads=1)
    logits, temperatures = random_rows(min(exponential.max_rows, 4), size)
    found = weights_of(exponential, logits, temperatures).astype(np.float64)
    exponent = (logits.astype(np.float64) - logits.max(axis=1)[:, None]) / temperatures[:, None]
    seen = exponent > -80
    error = np.abs(found / np.exp(exponent) - 1)[seen]
    assert np.all(error <= 2.0**-23 * (2 + 2 * np.abs(exponent[seen])))
    assert np.all(found[exponent < -105] == 0.0)


def test_the_largest_weighs_one_and_the_impossible_nothing() -> None:
    logits = np.array([[-np.inf, 3.0, -np.inf, 3.0, -200.0]], np.float32)
    for temperature in (1e-5, 0.5, 1.0, 100.0):
        weights = weights_of(Exponential(5, num_threads=1), logits, np.array([temperature]))
        assert weights[0, :4].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_one_row_of_any_width_fits_and_several_narrow_ones() -> None:
    assert Exponential(300_000, num_threads=1).max_rows == 1
    assert Exponential(100, num_threads=1).max_rows > 100
