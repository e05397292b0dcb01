"""How likely the model finds a prompt: each token judged once, by the model's rule, however it is computed."""

from __future__ import annotations

import numpy as np
import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.request import Completion, FinishReason, Request, SamplingParams
from ortserve.runtime.testing import predict_logits
from tests.runtime.driving import prompt_of
from tests.runtime.synthetic import PADDING_ID, SyntheticModel, run_to_end, whole

SCORED = SamplingParams(temperature=0, max_tokens=0, num_prompt_logprobs=2)
LENGTHS = (1, 2, 3, 64, 65, 127, 128, 129, 200)


def prompt(length: int) -> tuple[int, ...]:
    return tuple((length * 31 + place * 7) % 100 for place in range(length))


def score(synthetic: SyntheticModel, requests: list[Request], **options: object) -> dict[str, Completion]:
    config = EngineConfig(max_rows=4, max_context=256, **options)  # type: ignore[arg-type]
    engine = synthetic.engine(synthetic.plan(config))
    replies = run_to_end(engine, requests)
    return {request_id: whole(deltas) for request_id, deltas in replies.items()}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("chunk", "max_logit_rows"), [(128, 64), (128, 5), (7, 64), (128, 1), (128, 256)])
def test_every_token_but_the_first_is_judged_by_the_models_rule(
    synthetic: SyntheticModel, chunk: int, max_logit_rows: int, deterministic: bool
) -> None:
    requests = [Request(f"r{length}", prompt(length), SCORED) for length in LENGTHS]
    found = score(
        synthetic, requests, max_chunk_tokens=chunk, max_logit_rows=max_logit_rows, deterministic=deterministic
    )
    for request in requests:
        reply = found[request.id]
        assert reply.finish is FinishReason.LENGTH
        assert reply.token_ids == ()
        assert reply.usage.num_output_tokens == 0
        assert [entry.token_id for entry in reply.prompt_logprobs] == list(request.prompt[1:])
        for place, entry in enumerate(reply.prompt_logprobs):
            logits = predict_logits(list(request.prompt[: place + 1]))[:PADDING_ID].astype(np.float64)
            expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-3)
            assert entry.top[0][0] == int(logits.argmax())
            assert len(entry.top) == 2
            if entry.token_id == entry.top[0][0]:
                assert entry.logprob == entry.top[0][1], "the same float: clients compare them"


def test_steps_keep_to_their_logits_rows(synthetic: SyntheticModel) -> None:
    for deterministic in (False, True):
        config = EngineConfig(max_rows=4, max_context=256, max_logit_rows=6, deterministic=deterministic)
        engine = synthetic.engine(synthetic.plan(config))
        steps: list[int] = []
        run = engine._runner.run

        def recorded(step, run=run, steps=steps):  # type: ignore[no-untyped-def]
            steps.append(step.num_logits)
            return run(step)

        engine._runner.run = recorded  # type: ignore[method-assign]
        scoring = [Request(f"s{index}", prompt(100 + index), SCORED) for index in range(2)]
        plain = [Request(f"p{index}", prompt_of(index), SamplingParams(max_tokens=60, seed=1)) for index in range(2)]
        run_to_end(engine, [*plain, *scoring])
        assert max(steps) == 6


def test_prompts_are_judged_and_continued_in_one_request(synthetic: SyntheticModel) -> None:
    plain = SamplingParams(temperature=0, max_tokens=12, num_logprobs=1)
    both = SamplingParams(temperature=0, max_tokens=12, num_logprobs=1, num_prompt_logprobs=1)
    alone = score(synthetic, [Request("r", prompt(150), plain)])["r"]
    found = score(synthetic, [Request("r", prompt(150), both)])["r"]
    assert found.token_ids == alone.token_ids
    assert len(found.prompt_logprobs) == 149
    assert len(found.logprobs) == len(found.token_ids)


def test_a_cached_prompt_is_judged_at_every_position(synthetic: SyntheticModel) -> None:
    plan = synthetic.plan(EngineConfig(max_rows=2, max_context=256), num_host_blocks=8)
    engine = synthetic.engine(plan, prompt_cache="prefix")
    warm = Request("warm", prompt(200), SamplingParams(temperature=0, max_tokens=2))
    run_to_end(engine, [warm])
    again = whole(run_to_end(engine, [Request("again", prompt(200), SamplingParams(max_tokens=1))])["again"])
    assert again.usage.num_cached_tokens > 0, "the prompt is not cached at all"
    scored = whole(run_to_end(engine, [Request("scored", prompt(200), SCORED)])["scored"])
    assert scored.usage.num_cached_tokens == 0
    assert len(scored.prompt_logprobs) == 199


def test_choices_of_one_prompt_share_its_computation_though_one_of_them_judges_it(synthetic: SyntheticModel) -> None:
    judging = SamplingParams(seed=3, max_tokens=5, num_prompt_logprobs=0)
    plain = SamplingParams(seed=3, max_tokens=5)
    requests = [
        Request(f"r{index}", prompt(120), plain if index else judging, choice=index, group="call") for index in range(3)
    ]
    found = score(synthetic, requests)
    assert found["r0"].usage.num_cached_tokens == 0
    assert [found[f"r{index}"].usage.num_cached_tokens for index in (1, 2)] == [119, 119]
    assert len(found["r0"].prompt_logprobs) == 119
    assert found["r1"].prompt_logprobs == ()


def test_logits_that_are_no_numbers_end_the_request(synthetic: SyntheticModel) -> None:
    config = EngineConfig(max_rows=4, max_context=256)
    engine = synthetic.engine(synthetic.plan(config))
    run = engine._runner.run

    def broken(step):  # type: ignore[no-untyped-def]
        logits = run(step)
        if any(row.num_scored for row in step.rows):
            logits[0] = np.nan
        return logits

    engine._runner.run = broken  # type: ignore[method-assign]
    found = whole(run_to_end(engine, [Request("r", prompt(20), SCORED)])["r"])
    assert found.finish is FinishReason.ERROR
