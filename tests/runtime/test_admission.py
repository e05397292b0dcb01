"""What a request must be like: values inside their intervals, known ids, a prompt that fits."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import ContextLengthError, RequestError
from ortserve.runtime.request import Request, SamplingParams
from ortserve.runtime.scheduling.admission import check_request, new_sequence
from ortserve.runtime.sequence import Sequence
from tests.runtime.synthetic import SyntheticModel

MAX_CONTEXT = 200


def check(model: SyntheticModel, prompt: tuple[int, ...], **sampling: Any) -> None:
    plan = model.plan(EngineConfig(max_context=MAX_CONTEXT))
    check_request(Request("r", prompt, SamplingParams(**sampling)), model.manifest, plan)


def sequence_of(model: SyntheticModel, prompt: tuple[int, ...], **sampling: Any) -> Sequence:
    plan = model.plan(EngineConfig(max_context=MAX_CONTEXT))
    request = Request("r", prompt, SamplingParams(**sampling), choice=3)
    return new_sequence(request, model.manifest, plan, seed=9, arrival=4, now_s=1.5)


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ("temperature", (0.0, 0.5, 2.0, 100.0), (-0.1, math.nan, math.inf)),
        ("top_k", (0, 1, 10**6), (-1,)),
        ("top_p", (0.0, 0.5, 1.0), (-0.01, 1.01, math.nan)),
        ("min_p", (0.0, 0.5, 1.0), (-0.01, 1.01, math.nan)),
        ("repetition_penalty", (0.01, 1.0, 2.0), (0.0, -1.0, math.nan, math.inf)),
        ("frequency_penalty", (-2.0, 0.0, 2.0), (-2.1, 2.1, math.nan)),
        ("presence_penalty", (-2.0, 0.0, 2.0), (-2.1, 2.1, math.nan)),
        ("max_tokens", (None, 0, 1, 10**9), (-1,)),
        ("min_tokens", (0, 5), (-1,)),
        ("num_logprobs", (None, 0, 20), (-1, 21)),
        ("num_prompt_logprobs", (None, 0, 20), (-1, 21)),
        ("logit_bias", ((), ((3, -100.0),)), (((3, math.nan),), ((3, math.inf),), ((1, 0.0), (3, -math.inf)))),
    ],
)
def test_values_outside_their_interval_are_refused_by_name(
    parameter: str, good: tuple[Any, ...], bad: tuple[Any, ...]
) -> None:
    for value in good:
        SamplingParams(**{parameter: value})
    for value in bad:
        with pytest.raises(RequestError, match=parameter) as error:
            SamplingParams(**{parameter: value})
        assert error.value.parameter == parameter
        assert "\n" not in str(error.value)


def test_an_empty_prompt_is_refused(synthetic: SyntheticModel) -> None:
    with pytest.raises(RequestError, match="no tokens") as error:
        check(synthetic, ())
    assert error.value.parameter == "prompt"


def test_a_prompt_must_leave_room_for_one_token(synthetic: SyntheticModel) -> None:
    check(synthetic, (1,) * (MAX_CONTEXT - 1))
    with pytest.raises(
        ContextLengthError, match="the prompt has 200 tokens, and the model's context holds 200"
    ) as error:
        check(synthetic, (1,) * MAX_CONTEXT)
    assert (error.value.num_prompt_tokens, error.value.max_context) == (MAX_CONTEXT, MAX_CONTEXT)


@pytest.mark.parametrize("token", [-1, 100, 101, 10**12])
def test_ids_the_model_does_not_have_are_refused_wherever_they_are(synthetic: SyntheticModel, token: int) -> None:
    """100 is in the embedding, but no token: it is padding."""
    with pytest.raises(RequestError, match=rf"prompt\[2\] is {token}, the model has token ids 0 to 99"):
        check(synthetic, (0, 99, token))
    with pytest.raises(RequestError, match=rf"stop_token_ids\[1\] is {token}"):
        check(synthetic, (1,), stop_token_ids=(0, token))
    with pytest.raises(RequestError, match=rf"logit_bias\[0\] is {token}") as error:
        check(synthetic, (1,), logit_bias=((token, 1.0),))
    assert error.value.parameter == "logit_bias"
    check(synthetic, (0, 99), stop_token_ids=(0, 99), logit_bias=((0, 1.0), (99, 1.0)))


@given(num_prompt=st.integers(1, MAX_CONTEXT - 1), max_tokens=st.one_of(st.none(), st.integers(1, 500)))
def test_max_tokens_is_cut_to_what_the_context_leaves(
    synthetic: SyntheticModel, num_prompt: int, max_tokens: int | None
) -> None:
    sequence = sequence_of(synthetic, (1,) * num_prompt, max_tokens=max_tokens)
    assert sequence.max_tokens == min(math.inf if max_tokens is None else max_tokens, MAX_CONTEXT - num_prompt)


def test_a_sequence_starts_with_a_copy_of_its_prompt_and_nothing_computed(synthetic: SyntheticModel) -> None:
    sequence = sequence_of(synthetic, (5, 6, 7))
    assert sequence.tokens == [5, 6, 7]
    assert (sequence.num_computed, sequence.num_prompt_tokens, sequence.num_output_tokens) == (0, 3, 0)
    assert (sequence.seed, sequence.arrival, sequence.arrived_s) == (9, 4, 1.5)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, False),
        ({"logit_bias": ((1, 2.0),)}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"frequency_penalty": 0.1}, True),
        ({"presence_penalty": -0.1}, True),
    ],
)
def test_a_history_is_kept_only_for_penalties(
    synthetic: SyntheticModel, sampling: dict[str, Any], expected: bool
) -> None:
    history = sequence_of(synthetic, (5, 5, 6), **sampling).history
    assert (history is not None) == expected
    if history is not None:
        assert history.ids.tolist() == [5, 6]
        assert history.counts.tolist() == [0, 0]


def test_end_ids_are_banned_until_min_tokens_are_drawn(synthetic: SyntheticModel) -> None:
    sequence = sequence_of(synthetic, (5, 6), min_tokens=2, stop_token_ids=(8,))
    for position, banned in enumerate([(0,), (0,), (), ()]):
        draw = sequence.draws(())[0]
        assert (draw.position, draw.banned, draw.seed, draw.choice) == (position, banned, 9, 3)
        sequence.tokens.append(1)
    assert sequence_of(synthetic, (5, 6), min_tokens=2, ignore_eos=True).draws(())[0].banned == ()


def test_a_request_ends_by_its_ids_or_its_length(synthetic: SyntheticModel) -> None:
    sequence = sequence_of(synthetic, (5, 6), max_tokens=2, stop_token_ids=(8,))
    sequence.tokens.append(1)
    assert sequence.finish_after(1) is None
    assert sequence.finish_after(0) == "stop"
    assert sequence.finish_after(8) == "stop"
    sequence.tokens.append(1)
    assert sequence.finish_after(1) == "length"
    assert sequence.finish_after(8) == "stop"
    assert sequence_of(synthetic, (5, 6), ignore_eos=True).finish_after(0) is None
