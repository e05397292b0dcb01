"""Steps prepared and launched while a device works: what is launched early, and that nothing is lost by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.errors import DeviceError
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import DraftHints, FinishReason, Request, SamplingParams
from ortserve.runtime.scheduling.audit import audit
from ortserve.runtime.speculation.drafting import Drafting
from tests.runtime.paged_synthetic import PagedSyntheticModel, load_paged_synthetic_model
from tests.runtime.synthetic import greedy_tokens, run_to_end, whole
from tests.runtime.test_drafting import GuessingDrafter, right

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> PagedSyntheticModel:
    return load_paged_synthetic_model(tmp_path_factory.mktemp("paged"), max_context=512)


class Watched:
    """An engine that notes which of its steps were planned and which were launched early, in order."""

    def __init__(self, paged: PagedSyntheticModel, *, num_rows: int = 4, num_blocks: int | None = None) -> None:
        self.plan: EnginePlan = paged.plan(EngineConfig(max_rows=num_rows, max_context=512), num_blocks=num_blocks)
        self.engine: Engine = paged.engine(self.plan)
        self.kinds = ""
        self.num_behind = 0  # of those launched early: behind their tokens, before they are known
        runner: Any = self.engine._runner
        run, launch, launch_behind = runner.run, runner.launch, runner.launch_behind

        def noted_run(step: Any) -> Any:
            self.kinds += "p" if step.rows else ""
            return run(step)

        def noted_launch(prepared: Any, tokens: Sequence[int]) -> Any:
            self.kinds += "e"
            return launch(prepared, tokens)

        def noted_launch_behind(prepared: Any, address: int, num_rows: int) -> Any:
            self.kinds += "e"
            self.num_behind += 1
            return launch_behind(prepared, address, num_rows)

        runner.run, runner.launch, runner.launch_behind = noted_run, noted_launch, noted_launch_behind

    def add(self, *names: str) -> list[Request]:
        requests = asked(*names)
        for request in requests:
            self.engine.add(request)
        return requests


def asked(*names: str, sampling: SamplingParams = GREEDY) -> list[Request]:
    return [Request(name, tuple(range(3, 9 + place)), sampling) for place, name in enumerate(names)]


def test_plain_decodes_are_launched_early_and_planned_now_and_then(paged: PagedSyntheticModel) -> None:
    watched = Watched(paged)
    requests = asked("a", "b", "c")
    replies = run_to_end(watched.engine, requests)
    for request in requests:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, GREEDY)
    assert watched.kinds.count("e") > 30
    assert watched.num_behind == watched.kinds.count("e")
    assert all(len(run) <= 16 for run in watched.kinds.split("p"))


def test_a_newcomer_waits_for_one_step_at_the_most(paged: PagedSyntheticModel) -> None:
    watched = Watched(paged)
    watched.add("a", "b")
    for _ in range(6):
        watched.engine.step()
    assert watched.kinds.endswith("e")
    begun = len(watched.kinds)
    watched.add("late")
    watched.engine.step()
    watched.engine.step()
    late = watched.engine.scheduler.find("late")
    assert watched.kinds[begun:].count("p") == 1
    assert late is not None
    assert late.num_output_tokens == 1


def test_waiting_for_a_row_does_not_stop_it(paged: PagedSyntheticModel) -> None:
    watched = Watched(paged, num_rows=2)
    requests = asked("a", "b", "c", "d")
    replies = run_to_end(watched.engine, requests)
    assert watched.kinds.count("e") > watched.kinds.count("p")
    for request in requests:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, GREEDY)


def test_what_runs_out_of_blocks_is_planned(paged: PagedSyntheticModel) -> None:
    size = paged.plan(EngineConfig(max_context=512)).block_size
    sampling = SamplingParams(temperature=0, max_tokens=2 * size, ignore_eos=True)
    watched = Watched(paged, num_blocks=5)
    requests = asked("a", "b", sampling=sampling)
    replies = run_to_end(watched.engine, requests)
    assert "e" in watched.kinds
    for request in requests:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, sampling)
    assert not audit(watched.engine.scheduler, watched.plan)


def test_blocks_of_a_cancelled_request_are_free_only_once_the_device_is_done(
    paged: PagedSyntheticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(paged)
    blocks = watched.engine.scheduler.placement.blocks
    free_when_waited: list[int] = []
    monkeypatch.setattr(paged.device, "synchronize", lambda: free_when_waited.append(blocks.num_free))
    watched.add("a", "b")
    for _ in range(5):
        watched.engine.step()
    assert watched.engine._flight is not None
    before = blocks.num_free
    free_when_waited.clear()
    watched.engine.cancel("a")
    assert free_when_waited == [before]
    assert blocks.num_free > before
    rest = [delta for delta in watched.engine.step() if delta.request_id == "a"]
    assert rest == [], "a cancelled request has had its last delta"
    watched.engine.cancel("b")
    num_steps = 0
    while watched.engine.has_work:
        assert watched.engine.step() == []
        num_steps += 1
    assert num_steps > 0, "the device had a step left"
    assert not audit(watched.engine.scheduler, watched.plan)


def test_a_launch_that_fails_takes_nothing_from_the_step_before(paged: PagedSyntheticModel) -> None:
    watched = Watched(paged)
    (request,) = watched.add("a")
    tokens: list[int] = []
    for _ in range(5):
        tokens += [token for delta in watched.engine.step() for token in delta.token_ids]

    def fail(*ahead: Any) -> Any:
        del ahead
        raise DeviceError("the device is gone")

    watched.engine._runner.launch_behind = fail  # type: ignore[attr-defined]
    deltas = watched.engine.step()
    tokens += [token for delta in deltas for token in delta.token_ids]
    assert tokens == greedy_tokens(request.prompt, GREEDY)[: len(tokens)]
    assert len(tokens) == 6
    assert deltas[-1].finish is FinishReason.ERROR
    assert deltas[-1].error == "the device is gone"
    assert watched.engine.stats().num_failed_steps == 1
    assert watched.engine.scheduler.find("a") is None
    assert not audit(watched.engine.scheduler, watched.plan)


def test_ends_are_seen_before_the_next_step(paged: PagedSyntheticModel) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=7, ignore_eos=True)
    watched = Watched(paged)
    (short,) = asked("short", sampling=sampling)
    replies = run_to_end(watched.engine, [short])
    assert list(whole(replies["short"]).token_ids) == greedy_tokens(short.prompt, sampling)
    assert len(watched.kinds) == 7, "no step beyond the last token"


def test_an_end_that_nobody_foresaw_costs_the_others_nothing(paged: PagedSyntheticModel) -> None:
    """The row that ended is in the step that was launched behind its last token, and comes to nothing."""
    watched = Watched(paged)
    (first, second) = asked("a", "b")
    end = greedy_tokens(first.prompt, GREEDY)[9]
    stops = replace(first, sampling=replace(GREEDY, stop_token_ids=(end,)))
    expected = greedy_tokens(first.prompt, GREEDY)
    replies = run_to_end(watched.engine, [stops, second])
    assert list(whole(replies["a"]).token_ids) == expected[: expected.index(end)]
    assert whole(replies["a"]).finish is FinishReason.STOP
    assert list(whole(replies["b"]).token_ids) == greedy_tokens(second.prompt, GREEDY)
    assert watched.num_behind == watched.kinds.count("e")
    assert watched.engine.scheduler.placement.blocks.num_free == watched.plan.num_blocks
    assert not audit(watched.engine.scheduler, watched.plan)


def test_blocks_of_a_row_that_ends_are_free_only_once_the_device_is_done(
    paged: PagedSyntheticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step behind its last token still writes there, and a cache may read a block from disk into it at any time."""
    watched = Watched(paged)
    blocks = watched.engine.scheduler.placement.blocks
    (first, second) = asked("a", "b")
    end = greedy_tokens(first.prompt, GREEDY)[9]
    watched.engine.add(replace(first, sampling=replace(GREEDY, stop_token_ids=(end,))))
    watched.engine.add(second)
    free_when_settled: list[int] = []
    monkeypatch.setattr(watched.engine._runner, "settle", lambda: free_when_settled.append(blocks.num_free))
    while not any(delta.finish for delta in watched.engine.step()):
        assert not free_when_settled, "nobody waits for the device while all rows go on"
    assert len(free_when_settled) == 1
    assert blocks.num_free > free_when_settled[0]


def test_the_only_request_may_end_while_its_next_step_is_on_its_way(paged: PagedSyntheticModel) -> None:
    watched = Watched(paged)
    (request,) = asked("a")
    end = greedy_tokens(request.prompt, GREEDY)[9]
    stops = replace(request, sampling=replace(GREEDY, stop_token_ids=(end,)))
    for _ in range(2):  # what was launched for nothing is over before the next request is served
        replies = run_to_end(watched.engine, [stops])
        assert whole(replies["a"]).finish is FinishReason.STOP
        assert not watched.engine.has_work
    assert not audit(watched.engine.scheduler, watched.plan)


@pytest.mark.parametrize(
    ("sampling", "is_behind"),
    [
        (SamplingParams(temperature=0.8, seed=3), True),
        (SamplingParams(temperature=0.8, seed=3, top_k=20, top_p=0.9), True),
        (SamplingParams(temperature=0.8, seed=3, top_p=0.9), False),  # the host may have to look at the logits
        (SamplingParams(temperature=0.8, seed=3, top_k=1000), False),
    ],
)
def test_tokens_that_the_host_may_draw_are_waited_for(
    paged: PagedSyntheticModel, sampling: SamplingParams, is_behind: bool
) -> None:
    watched = Watched(paged)
    requests = asked("a", "b", sampling=replace(sampling, max_tokens=20, ignore_eos=True))
    replies = run_to_end(watched.engine, requests)
    assert all(len(whole(replies[request.id]).token_ids) == 20 for request in requests)
    assert watched.kinds.count("e") > 10
    assert watched.num_behind == (watched.kinds.count("e") if is_behind else 0)


def test_a_drafter_is_no_obstacle_where_nothing_is_guessed(paged: PagedSyntheticModel) -> None:
    watched = Watched(paged)
    drafter = GuessingDrafter(right)
    watched.engine.drafting = Drafting(drafter, vocab_size=paged.manifest.num_tokens)
    requests = [replace(request, draft=DraftHints(max_draft=0)) for request in asked("a", "b")]
    replies = run_to_end(watched.engine, requests)
    assert watched.kinds.count("e") > 30
    for request in requests:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, GREEDY)
    watched.kinds = ""
    (guessed,) = asked("c")
    found = whole(run_to_end(watched.engine, [guessed])["c"])
    assert found.usage.num_accepted_tokens > 0
    assert "e" not in watched.kinds[: watched.kinds.index("p") + 3], "guesses come with a plan"
    assert list(found.token_ids) == greedy_tokens(guessed.prompt, GREEDY)
    watched.engine.close()
