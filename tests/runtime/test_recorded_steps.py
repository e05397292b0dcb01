"""Steps whose work is recorded: the shapes they are padded to, that replies stay equal, and what the pace learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices import session
from ortserve.runtime.devices.device import HostDevice, Launch
from ortserve.runtime.devices.recordings import Recordings
from ortserve.runtime.engine import Engine
from ortserve.runtime.pages.batch import (
    LONGEST_SPREAD,
    ROOM_FOR_PADDING,
    Bounds,
    PagedBatch,
    build_paged_batch,
    row_bucket,
)
from ortserve.runtime.pages.sampler import DeviceSampler
from ortserve.runtime.request import Request, SamplingParams
from ortserve.runtime.speculation.drafting import Drafting
from ortserve.runtime.step import Row, Step
from tests.runtime.paged_synthetic import PagedSyntheticModel, load_paged_synthetic_model
from tests.runtime.recording_device import NotedBinding, RecordingDevice
from tests.runtime.synthetic import greedy_tokens, run_to_end, whole
from tests.runtime.test_drafting import GuessingDrafter, mixed
from tests.waiting import PATIENCE_S

BLOCK, WIDTH = 16, 8
BOUNDS = Bounds(num_rows=16, num_pages=WIDTH, num_spread=96, num_read_again=4000)
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


class Played(HostDevice):
    """Records anything, and runs it when it is launched."""

    def record(self, enqueue: Callable[[], None]) -> Launch | None:
        return enqueue


def verifying(*lengths: int, start: int = 20) -> Step:
    """Rows that verify guesses, at different depths."""
    return Step(
        0,
        (),
        tuple(
            Row(
                f"r{place}",
                place,
                start + place,
                tuple(range(1, 1 + length)),
                length,
                blocks=tuple(range(place * WIDTH, (place + 1) * WIDTH)),
            )
            for place, length in enumerate(lengths)
        ),
    )


def packed(step: Step, bounds: Bounds = BOUNDS) -> PagedBatch:
    return build_paged_batch(step, bounds, block_size=BLOCK)


@pytest.mark.parametrize("lengths", [(5,), (2, 1), (17,), (1, 17, 3), (4,) * 8, (2, *(1,) * 15)])
def test_tokens_that_are_verified_become_rows(lengths: tuple[int, ...]) -> None:
    step = verifying(*lengths)
    found, ragged = packed(step), packed(step, replace(BOUNDS, num_spread=0))
    assert (found.is_spread, found.is_decode, ragged.is_spread) == (True, False, False)
    count = sum(lengths)
    for name in ("input_ids", "position_ids", "logit_index", "slot_mapping"):
        np.testing.assert_array_equal(getattr(found, name)[:count], getattr(ragged, name))
    tokens = [(row, place) for row in step.rows for place in range(len(row.tokens))]
    assert found.past_lengths.tolist()[:count] == [row.start + place for row, place in tokens]
    for place, (row, _) in enumerate(tokens):
        assert found.page_table[place].tolist()[:2] == list(row.blocks[:2])
    assert set(found.slot_mapping[count:]) <= {-1}
    assert not found.past_lengths[count:].any()
    assert not found.page_table[count:].any()
    size = len(found.input_ids)
    assert found.cumulative_lengths.tolist() == list(range(size + 1))
    assert len(found.logit_index) == len(found.past_lengths) == size
    longest, most, least = found.attention_bounds
    assert longest == 1
    assert least <= max(row.end for row in step.rows) <= most


def test_a_spread_step_has_a_shape_of_plain_decodes() -> None:
    wide = replace(BOUNDS, num_rows=96)
    for lengths in ((9, 1, 1), (3, 3, 5), (2,), (17, 17), (5,) * 16):
        step = verifying(*lengths)
        found = packed(step, wide)
        deepest = max(row.end for row in step.rows) - 1
        like = tuple(
            replace(
                step.rows[0],
                slot=place,
                start=deepest,
                tokens=(1,),
                num_logits=1,
                blocks=tuple(range(first, first + WIDTH)),
            )
            for place, first in enumerate(range(0, WIDTH * sum(lengths), WIDTH))
        )
        plain = packed(replace(step, rows=like), wide)
        assert plain.is_decode
        assert found.shape == plain.shape
        np.testing.assert_array_equal(found.attention_bounds, plain.attention_bounds)


def test_only_some_tokens_may_have_logits() -> None:
    step = verifying(3, 4)
    rows = (replace(step.rows[0], num_logits=1), replace(step.rows[1], num_logits=2))
    assert packed(replace(step, rows=rows)).logit_index.tolist() == [2, 5, 6, 0, 0, 0, 0, 0]


def test_chunks_and_what_would_be_read_too_often_stay_rows() -> None:
    assert packed(verifying(LONGEST_SPREAD)).is_spread
    assert not packed(verifying(LONGEST_SPREAD + 1)).is_spread
    assert packed(verifying(*(8,) * 12)).is_spread
    assert not packed(verifying(*(8,) * 12), replace(BOUNDS, num_spread=95)).is_spread
    assert packed(verifying(9, start=91), replace(BOUNDS, num_read_again=800)).is_spread
    assert not packed(verifying(9, start=91), replace(BOUNDS, num_read_again=799)).is_spread


def test_padding_has_room() -> None:
    for most in (64, 65, 128, 200):
        for count in range(1, most + 1):
            assert count <= row_bucket(count, most + ROOM_FOR_PADDING) <= most + ROOM_FOR_PADDING


def test_a_shape_is_recorded_the_second_time_and_the_last_ones_are_kept() -> None:
    recordings: Recordings[str] = Recordings(Played(), most=2)
    ran: list[str] = []

    def enqueue(shape: str) -> bool:
        """Whether it took longer than usual."""
        if recordings.launch(shape):
            return False
        return recordings.run(shape, lambda: ran.append(shape))

    assert [enqueue("a") for _ in range(4)] == [True, True, False, False]
    assert ran == ["a"] * 4
    assert [enqueue("b") for _ in range(2)] == [True, True]
    assert not enqueue("a")
    assert [enqueue("c") for _ in range(2)] == [True, True]
    assert [shape in recordings for shape in "abc"] == [True, False, True]
    assert [enqueue("b") for _ in range(2)] == [True, False], "it is known already"
    recordings.drop(lambda shape: shape == "b")
    assert len(recordings) == 1
    assert ran == ["a"] * 4 + ["b"] * 2 + ["a"] + ["c"] * 2 + ["b"] * 2


def test_a_device_that_records_nothing_is_slow_once() -> None:
    recordings: Recordings[int] = Recordings(HostDevice())
    ran: list[int] = []
    assert [recordings.run(1, lambda: ran.append(1)) for _ in range(3)] == [True, False, False]
    assert ran == [1, 1, 1]
    assert not recordings.launch(1)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PagedSyntheticModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "DeviceBinding", NotedBinding)
        device = RecordingDevice()
        yield load_paged_synthetic_model(Path(tmp_path_factory.mktemp("recording")), max_context=512, device=device)


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> PagedSyntheticModel:
    return load_paged_synthetic_model(tmp_path_factory.mktemp("paged"), max_context=512)


def guessing(model: PagedSyntheticModel, num_rows: int) -> Engine:
    manifest = model.manifest
    sampler = DeviceSampler(  # what it records is good for one engine's logits
        model.device, vocab_size=manifest.vocab_size, num_tokens=manifest.num_tokens, max_rows=128
    )
    model = replace(model, sampler=sampler)
    engine = model.engine(model.plan(EngineConfig(max_rows=num_rows, max_context=512)))
    engine.drafting = Drafting(  # drafts cost nothing by the engine's clock, which stands still
        GuessingDrafter(mixed),
        vocab_size=manifest.num_tokens,
        clock=engine._clock,
        shortest_wait_s=PATIENCE_S,
    )
    return engine


@pytest.mark.parametrize("num_rows", [1, 5])
def test_recorded_verifications_say_what_eager_ones_do(
    recording: PagedSyntheticModel, paged: PagedSyntheticModel, num_rows: int
) -> None:
    device = recording.device
    assert isinstance(device, RecordingDevice)
    launched, recorded = device.num_launched, device.num_recorded
    engine = guessing(recording, num_rows)
    runner: Any = engine._runner
    enqueue, spread = runner._enqueue, 0

    def watched(batch: PagedBatch, tokens: Any = None) -> None:
        nonlocal spread
        spread += batch.is_spread and not batch.is_decode and batch.shape in runner.recordings
        enqueue(batch, tokens)

    runner._enqueue = watched
    samplings = [GREEDY, replace(GREEDY, temperature=1.0, seed=3)]
    requests = [
        Request(f"r{place}", tuple(range(3, 9 + 7 * place)), samplings[place % 2], choice=place) for place in range(9)
    ]
    found = {name: whole(deltas) for name, deltas in run_to_end(engine, requests).items()}
    assert device.num_recorded > recorded
    assert device.num_launched > launched + 10
    assert spread > 10
    assert sum(reply.usage.num_accepted_tokens for reply in found.values()) > 20
    assert sum(reply.usage.num_rejected_tokens for reply in found.values()) > 5
    for request in requests[::2]:
        assert list(found[request.id].token_ids) == greedy_tokens(request.prompt, GREEDY)
    plain = run_to_end(paged.engine(paged.plan(EngineConfig(max_rows=1, max_context=512))), requests)
    for request in requests[1::2]:
        assert found[request.id].token_ids == whole(plain[request.id]).token_ids
    engine.close()


def test_the_pace_learns_nothing_from_a_step_that_is_new(recording: PagedSyntheticModel) -> None:
    engine = guessing(recording, 1)
    learnt: list[int] = []
    observe = engine._pace.observe

    def noted(tokens: int, attended: int, milliseconds: float, *, longest: int = 1) -> None:
        learnt.append(tokens)
        observe(tokens, attended, milliseconds, longest=longest)

    engine._pace.observe = noted  # type: ignore[method-assign]
    fed: list[tuple[int, bool]] = []
    runner: Any = engine._runner
    enqueue = runner._enqueue

    def watched(batch: Any, tokens: Any = None) -> None:
        is_new = batch.shape not in runner.recordings if batch.is_spread else not runner._seen_chunks
        fed.append((int(batch.cumulative_lengths[-1]), is_new))
        enqueue(batch, tokens)

    runner._enqueue = watched
    run_to_end(engine, [Request("r", tuple(range(3, 9)), GREEDY)])
    assert any(is_new for _, is_new in fed)
    assert len(learnt) == sum(not is_new for _, is_new in fed)
    engine.close()
