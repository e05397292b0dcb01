"""Every rule of the sampler, in its order, against a slow oracle that takes the documentation literally."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ortserve.runtime.request import SamplingParams
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.history import TokenHistory
from ortserve.runtime.sampling.sampler import Sampler

Floats = npt.NDArray[np.float32]

SIZES = (3, 12, 100, 511, 512, 513, 1_100, 5_000)
SLACK = 2e-6  # of thresholds: weights are float32
NUDGE = 2e-5  # of the random number, for sums of such weights


@lru_cache
def sampler_of(size: int) -> Sampler:
    return Sampler(size, num_threads=1)


def token_of(logits: Floats, draw: Draw) -> int | None:
    (drawn,) = sampler_of(len(logits)).draw(logits[None].copy(), [draw])
    return drawn.token_id


def after_rules(logits: Floats, draw: Draw, prompt: list[int], output: list[int]) -> Floats:
    """Penalties, bias and bans, token by token."""
    sampling = draw.sampling
    values = logits.copy()
    for token in {*prompt, *output, *draw.banned, *(biased for biased, _ in sampling.logit_bias)}:
        if token in prompt or token in output:
            penalty = np.float32(sampling.repetition_penalty)
            values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
        if token in output:
            values[token] -= np.float32(output.count(token)) * np.float32(sampling.frequency_penalty)
            values[token] -= np.float32(sampling.presence_penalty)
        for biased, bias in sampling.logit_bias:
            if biased == token:
                values[token] += np.float32(bias)
        if token in draw.banned:
            values[token] = -np.inf
    return values


def possible_tokens(values: Floats, draw: Draw) -> set[int]:
    """What may be drawn: nearly always one token, a few when the random number lies on a border."""
    sampling = draw.sampling
    order = np.lexsort((np.arange(len(values)), -values))
    if sampling.temperature == 0:
        return {int(order[0])}
    scaled = values.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    if sampling.top_k:
        order = order[: sampling.top_k]
    found: set[int] = set()
    for slack in (-SLACK, 0.0, SLACK):
        kept = order
        if sampling.top_p < 1:
            reached = np.cumsum(weights[order])
            wanted = sampling.top_p * (1 + slack) * reached[-1]
            kept = order[: min(int(np.searchsorted(reached, wanted)), len(order) - 1) + 1]
        kept = kept[weights[kept] >= min(sampling.min_p * (1 + slack), 1.0)]
        kept = np.sort(kept)
        reached = np.cumsum(weights[kept])
        first, last = (
            min(int(np.searchsorted(reached, (draw.uniform + nudge) * reached[-1], side="right")), len(kept) - 1)
            for nudge in (-NUDGE, NUDGE)
        )
        found.update(kept[first : last + 1].tolist())
    return found


samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 7, 600]),
    top_p=st.sampled_from([1.0, 1.0, 0.0, 0.3, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3, 2.0]),
    frequency_penalty=st.sampled_from([0.0, -2.0, 0.25, 2.0]),
    presence_penalty=st.sampled_from([0.0, -1.5, 0.75, 2.0]),
)


@settings(max_examples=150)
@given(
    st.sampled_from(SIZES), st.integers(0, 2**32), samplings, st.sampled_from([0.2, 1.0, 6.0]), st.booleans(), st.data()
)
def test_a_token_is_what_the_rules_in_their_order_leave(
    size: int, seed: int, sampling: SamplingParams, spread: float, is_coarse: bool, data: st.DataObject
) -> None:
    generator = np.random.default_rng(seed)
    grid = 1 if is_coarse else 64  # equal or clearly different, so that rounding decides no order
    logits = (np.round(generator.standard_normal(size) * spread * grid) / grid).astype(np.float32)
    some_ids = st.lists(st.integers(0, size - 1), max_size=6)
    prompt, output = data.draw(some_ids), data.draw(some_ids)
    bias = tuple((id, data.draw(st.sampled_from([-100.0, -1.0, 0.5, 4.0]))) for id in data.draw(some_ids))
    banned = tuple(id for id in data.draw(some_ids) if id != size // 2)
    history = TokenHistory(prompt)
    for token in output:
        history.add(token)
    draw = Draw(replace(sampling, logit_bias=bias), seed, 1, seed % 100, history, banned)
    expected = possible_tokens(after_rules(logits, draw, prompt, output), draw)
    assert len(expected) <= max(3, size // 20), "the oracle says nothing"
    assert token_of(logits, draw) in expected


def greedy(**options: object) -> SamplingParams:
    return replace(SamplingParams(temperature=0), **options)  # type: ignore[arg-type]


def seen(prompt: tuple[int, ...], output: tuple[int, ...]) -> TokenHistory:
    history = TokenHistory(prompt)
    for token in output:
        history.add(token)
    return history


def ruled(logits: list[float], sampling: SamplingParams, history: TokenHistory, **options: object) -> list[float]:
    """The row as the rules leave it: `draw` overwrites its argument."""
    row = np.array([logits], np.float32)
    draw = replace(Draw(sampling, 0, 0, 0, history), **options)  # type: ignore[arg-type]
    sampler_of(len(logits)).draw(row, [draw])
    return [float(value) for value in row[0]]


def test_repetition_counts_prompt_and_output_and_pushes_both_signs_down() -> None:
    history = seen(prompt=(0, 1, 1), output=(3, 3))
    found = ruled([2.0, -2.0, 2.0, 4.0, -4.0], greedy(repetition_penalty=2.0), history)
    assert found == [1.0, -4.0, 2.0, 2.0, -4.0]


def test_frequency_and_presence_count_the_output_only() -> None:
    history = seen(prompt=(0, 1, 1), output=(1, 3, 3, 3))
    found = ruled([0.0] * 5, greedy(frequency_penalty=0.5, presence_penalty=0.25), history)
    assert found == [0.0, -0.75, 0.0, -1.75, 0.0]
    assert ruled([0.0] * 5, greedy(presence_penalty=-1.0), history) == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_bias_comes_after_penalties_and_bans_after_bias() -> None:
    history = seen(prompt=(), output=(0,))
    sampling = greedy(repetition_penalty=2.0, frequency_penalty=1.0, logit_bias=((0, 4.0), (1, 100.0), (0, 1.0)))
    found = ruled([6.0, 0.0, 0.0], sampling, history, banned=(1,))
    assert found == [6.0 / 2 - 1.0 + 4.0 + 1.0, -np.inf, 0.0]


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_bias_of_a_hundred_decides_and_of_minus_a_hundred_forbids(
    temperature: float, truncation: dict[str, float]
) -> None:
    logits = np.linspace(0, 4, 40, dtype=np.float32)
    wanted = replace(SamplingParams(temperature=temperature), logit_bias=((3, 100.0),), **truncation)  # type: ignore[arg-type]
    forbidden = replace(wanted, logit_bias=tuple((id, -100.0) for id in range(1, 40)))
    for position in range(20):
        assert token_of(logits, Draw(wanted, 1, 0, position)) == 3
        assert token_of(logits, Draw(forbidden, 1, 0, position)) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 4}, {"top_p": 0.99}, {"min_p": 0.01}])
def test_banned_ids_are_never_drawn(temperature: float, truncation: dict[str, float]) -> None:
    logits = np.array([9.0, 9.0, 8.0, 1.0, 0.0], np.float32)
    sampling = replace(SamplingParams(temperature=temperature), logit_bias=((0, 100.0),), **truncation)  # type: ignore[arg-type]
    drawn = {token_of(logits, Draw(sampling, 5, 0, position, banned=(0, 1))) for position in range(60)}
    assert drawn <= ({2} if temperature == 0.0 else {2, 3, 4})
    assert len(drawn) > 1 or temperature < 50


def test_equal_logits_give_the_lowest_id_to_a_greedy_draw() -> None:
    for size in SIZES:
        logits = np.zeros(size, np.float32)
        logits[[size // 2, size - 1]] = 1.0
        assert token_of(logits, Draw(greedy(), 0, 0, 0)) == size // 2


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-12, 0.9e-5, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_tiny_temperatures_approach_the_greedy_token(temperature: float, truncation: dict[str, float]) -> None:
    logits = np.array([-3e4, 2.0, 2.5, 3e4, 3e4 - 1.0, -np.inf], np.float32)
    sampling = replace(SamplingParams(temperature=temperature), **truncation)  # type: ignore[arg-type]
    for position in range(10):
        assert token_of(logits, Draw(sampling, 3, 0, position)) == 3


@pytest.mark.parametrize("size", [511, 5_000, 16_384, 16_385, 33_280, 40_001])  # whole rows, then blocks of 512
def test_plain_draws_invert_the_whole_distribution_wherever_they_end(size: int) -> None:
    logits = (np.round(np.random.default_rng(size).standard_normal(size) * 64) / 64).astype(np.float32)
    for position in range(25):
        draw = Draw(SamplingParams(), 1, 0, position)
        assert token_of(logits, draw) in possible_tokens(logits, draw)


@pytest.mark.parametrize("truncation", [{}, {"top_k": 5}, {"top_p": 0.999}, {"min_p": 0.1}])
@pytest.mark.parametrize(("size", "first", "second"), [(5, 1, 3), (20_000, 700, 701), (20_000, 700, 13_000)])
def test_a_random_number_on_a_border_never_gives_an_impossible_token(
    monkeypatch: pytest.MonkeyPatch, truncation: dict[str, float], size: int, first: int, second: int
) -> None:
    logits = np.full(size, -np.inf, np.float32)
    logits[[first, second]] = 0.0
    sampling = replace(SamplingParams(), **truncation)  # type: ignore[arg-type]
    for number, token in ((0.0, first), (0.5 - 2**-54, first), (0.5, second), (1.0 - 2**-53, second)):
        monkeypatch.setattr("ortserve.runtime.sampling.draw.uniform", lambda *_, number=number: number)
        assert token_of(logits, Draw(sampling, 0, 0, 0)) == token


@pytest.mark.parametrize("size", [3, 20_000])
def test_a_sum_that_was_rounded_up_does_not_reach_beyond_the_last_possible_token(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    small = np.log(1.5 * 2.0**-24)  # in float32 1 and this are 1 + 2 ** -23, in float64 less
    monkeypatch.setattr("ortserve.runtime.sampling.draw.uniform", lambda *_: 1.0 - 2**-53)
    logits = np.full(size, -np.inf, np.float32)
    logits[:2] = [0.0, small]
    assert token_of(logits, Draw(SamplingParams(), 0, 0, 0)) == 1
