"""What the drafters bring on synthetic work: tokens per model call when drafts of up to eight are verified greedily."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from ortserve.plugins.registry import DRAFTERS, load
from tests.plugins.drafters.play import new_context, replay
from tests.plugins.drafters.texts import edited, prose, records

SEEDS = range(4)
Work = tuple[list[int], list[int], list[int] | None]  # prompt, reply, prediction


def copying(seed: int) -> Work:
    text = prose(500, seed)
    return text, edited(text, 0.02, seed + 50), None


def editing(seed: int) -> Work:
    text = prose(500, seed)
    return prose(50, seed + 70), edited(text, 0.02, seed + 50), text


def extraction(seed: int) -> Work:
    table, reply = records(12, seed)
    return table, reply, None


def writing(seed: int) -> Work:
    return prose(300, seed), prose(300, seed + 100), None


@pytest.mark.parametrize(
    ("work", "name", "least"),
    [
        (copying, "ngram", 3.5),
        (copying, "suffix", 4.5),
        (copying, "combined", 4.5),
        (editing, "prediction", 5.0),
        (editing, "combined", 5.0),
        (extraction, "ngram", 1.9),
        (extraction, "suffix", 1.9),
        (extraction, "combined", 1.9),
        (writing, "suffix", 1.2),
        (writing, "combined", 1.2),
        (writing, "prediction", 1.0),
    ],
)
def test_a_step_gives_so_many_tokens(work: Callable[[int], Work], name: str, least: float) -> None:
    num_tokens = num_steps = 0
    for prompt, reply, prediction in map(work, SEEDS):
        result = replay(load(DRAFTERS, name)(new_context()), prompt, reply, prediction=prediction)
        num_tokens, num_steps = num_tokens + result.num_tokens, num_steps + result.num_steps
    assert num_tokens / num_steps >= least


def tokens_per_step(prompt: Sequence[int], reply: Sequence[int], times: int) -> float:
    drafter = load(DRAFTERS, "suffix")(new_context())
    return [replay(drafter, prompt, reply, id=str(number)) for number in range(times)][-1].tokens_per_step


def test_a_reply_that_was_given_before_comes_fast() -> None:
    prompt, reply = prose(100, 1), prose(300, 2)
    assert tokens_per_step(prompt, reply, 2) > 3 * tokens_per_step(prompt, reply, 1)


def test_combined_is_not_far_behind_the_best_of_its_sources() -> None:
    for work in (copying, editing, extraction):
        prompt, reply, prediction = work(9)
        reached = {
            name: replay(load(DRAFTERS, name)(new_context()), prompt, reply, prediction=prediction).tokens_per_step
            for name in ("prediction", "suffix", "ngram", "combined")
        }
        assert reached["combined"] > 0.9 * max(reached.values()), reached
