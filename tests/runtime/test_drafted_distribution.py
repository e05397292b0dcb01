"""What is drawn under drafting has the model's distribution, token by token and jointly; a reused random number shows.

The synthetic model's logits fall by 0.5 with each id above the most likely one, so how far a drawn token lies above it
has a known distribution at every position, independent of all other positions. Seeds are fixed: so are the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.request import Request, SamplingParams
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sequence import Sequence as EngineSequence
from ortserve.runtime.speculation.drafting import Drafting
from ortserve.runtime.testing import VOCAB_SIZE, predict_logits, predict_next
from tests.runtime.synthetic import PADDING_ID, SyntheticModel, run_to_end, whole
from tests.runtime.test_drafting import GuessingDrafter, mixed, plan_of, right
from tests.runtime.test_model_drafting import drafted as model_drafted
from tests.waiting import PATIENCE_S

NUM_CELLS = 8  # distances of 0 to 6, and all others
BOUND = 41.8  # chi-square with 7 degrees of freedom exceeds it once in a million
JOINT_BOUND = 131.7  # with 63 degrees of freedom
SAMPLING = SamplingParams(temperature=1.0, max_tokens=41, ignore_eos=True)
Floats = npt.NDArray[np.float64]


def distances(prompt: Sequence[int], output: Sequence[int]) -> tuple[list[int], list[Floats]]:
    """How far each token lies above the most likely one, by cell, and the cells' probabilities there."""
    found, expected = list[int](), list[Floats]()
    tokens = list(prompt)
    for token in output:
        weights = np.exp(predict_logits(tokens)[:PADDING_ID].astype(np.float64))
        cells = np.minimum((np.arange(PADDING_ID) - predict_next(tokens)) % VOCAB_SIZE, NUM_CELLS - 1)
        expected.append(np.asarray(np.bincount(cells, weights / weights.sum(), NUM_CELLS), np.float64))
        found.append(int(cells[token]))
        tokens.append(token)
    return found, expected


def chi_square(observed: Floats, expected: Floats) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


def statistics(engine: Engine) -> tuple[float, float, float]:
    """Chi-square of single tokens and of neighbouring pairs, and the share of guessed tokens."""
    requests = [
        Request(f"r{seed}", (1 + seed % 90, 5 + seed % 7, 9), replace(SAMPLING, seed=seed)) for seed in range(240)
    ]
    replies = run_to_end(engine, requests)
    single, single_expected = np.zeros(NUM_CELLS), np.zeros(NUM_CELLS)
    joint, joint_expected = np.zeros((NUM_CELLS, NUM_CELLS)), np.zeros((NUM_CELLS, NUM_CELLS))
    num_accepted = num_tokens = 0
    for request in requests:
        reply = whole(replies[request.id])
        found, expected = distances(request.prompt, reply.token_ids)
        num_accepted, num_tokens = num_accepted + reply.usage.num_accepted_tokens, num_tokens + len(found)
        for cell, chances in zip(found, expected, strict=True):
            single[cell] += 1
            single_expected += chances
        for place in range(len(found) - 1):
            joint[found[place], found[place + 1]] += 1
            joint_expected += np.outer(expected[place], expected[place + 1])
    engine.close()
    return chi_square(single, single_expected), chi_square(joint, joint_expected), num_accepted / num_tokens


def guessing(guess: Callable[[Sequence[int], int], tuple[int, ...]]) -> Callable[[SyntheticModel], Engine]:
    def make(synthetic: SyntheticModel) -> Engine:
        engine = synthetic.engine(plan_of(synthetic, deterministic=False, rows=8))
        engine.drafting = Drafting(
            GuessingDrafter(guess), vocab_size=PADDING_ID, clock=engine._clock, shortest_wait_s=PATIENCE_S
        )
        return always_drafting(engine)

    return make


def small_model(synthetic: SyntheticModel) -> Engine:
    """Guesses with the requests' own random numbers: nearly all of them hold."""
    plan = synthetic.plan(EngineConfig(max_rows=8, max_context=384))
    return always_drafting(model_drafted(synthetic, plan))


def always_drafting(engine: Engine) -> Engine:
    engine._pace.observe = lambda *_, **__: None  # type: ignore[method-assign]  # costs unknown: a few guesses in every step
    return engine


@pytest.mark.parametrize(
    ("make", "least_share"),
    [(guessing(right), 0.2), (guessing(mixed), 0.2), (small_model, 0.7)],
    ids=["most likely", "sometimes wrong", "small model"],
)
def test_drafted_tokens_have_the_models_distribution(
    synthetic: SyntheticModel, make: Callable[[SyntheticModel], Engine], least_share: float
) -> None:
    single, joint, share = statistics(make(synthetic))
    assert share > least_share
    assert single < BOUND
    assert joint < JOINT_BOUND


def reused(draws: list[Draw]) -> list[Draw]:
    """Every position of a verification with the first one's random number."""
    return [replace(draw, position=draws[0].position) for draw in draws]


def shifted(draws: list[Draw]) -> list[Draw]:
    """Guesses with the number of the position after: a token after a rejection repeats one that was used."""
    return [draws[0], *(replace(draw, position=draw.position - 1) for draw in draws[1:])]


@pytest.mark.parametrize("planted", [reused, shifted])
def test_a_random_number_used_twice_is_found(
    synthetic: SyntheticModel, planted: Callable[[list[Draw]], list[Draw]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = EngineSequence.draws
    monkeypatch.setattr(EngineSequence, "draws", lambda self, drafts, masks=(): planted(original(self, drafts, masks)))
    single, joint, _ = statistics(guessing(right)(synthetic))
    assert single > BOUND or joint > JOINT_BOUND


def test_a_guess_that_is_taken_without_drawing_is_found(
    synthetic: SyntheticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepting a guess whenever its probability exceeds a half, say, favours likely tokens."""
    original = EngineSequence.draws

    def eager(self: EngineSequence, drafts: Sequence[int], masks: Sequence[object] = ()) -> list[Draw]:
        found = original(self, drafts)
        greedy = SamplingParams(temperature=0)
        return [*(replace(draw, sampling=greedy) for draw in found[:-1]), found[-1]]

    monkeypatch.setattr(EngineSequence, "draws", eager)
    single, _, _ = statistics(guessing(right)(synthetic))
    assert single > BOUND
