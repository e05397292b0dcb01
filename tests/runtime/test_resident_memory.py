"""Resident memory of an engine over 1,000 requests of mixed length stays within its block budget."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.request import Request, SamplingParams
from ortserve.runtime.slots.kv import SlotKvStore
from tests.runtime.residency import process_bytes, resident_bytes
from tests.runtime.synthetic import SyntheticModel, load_synthetic_model

MIB = 2**20
LONG = 4_000  # tokens, 128 bytes each
NUM_REQUESTS, NUM_LONG = 1_000, 40


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> SyntheticModel:
    """The synthetic model with a context worth measuring: a full row is 1 MiB."""
    return load_synthetic_model(Path(tmp_path_factory.mktemp("deep")), max_context=8_192)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes. `kv_most` and `kv_last` are of the rows, seen every few steps and in the end."""

    budget: int
    kv_most: int
    kv_last: int
    growth: int  # of the whole process, once the kernels have their scratch memory


def requests_of_mixed_length() -> list[Request]:
    dice = random.Random(1)
    lengths = [dice.choice([3, 20, 60, 150]) for _ in range(NUM_REQUESTS - NUM_LONG)]
    for _ in range(NUM_LONG):  # in any row, among the short ones
        lengths.insert(dice.randrange(len(lengths)), LONG)
    sampling = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    return [Request(f"r{place}", (place % 100,) * length, sampling) for place, length in enumerate(lengths)]


def run(engine: Engine, requests: list[Request]) -> int:
    """Serve all; returns the most bytes of the rows that were resident, seen every few steps."""
    most, number = 0, 0
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.step()
        number += 1
        if number % 10 == 0:
            most = max(most, rows_resident(engine))
    return most


def rows_resident(engine: Engine) -> int:
    store = engine._runner._store  # type: ignore[attr-defined]
    return resident_bytes(store.tensors()[0].address, store._rows.nbytes)


def measure(model: SyntheticModel) -> Measured:
    config = EngineConfig(max_rows=16, max_context=8_192, max_chunk_tokens=512)
    plan = model.plan(config, num_blocks=12_288 // 128)  # three of the long ones at once
    requests = requests_of_mixed_length()
    run(model.engine(plan), requests[:250])
    engine = model.engine(plan)
    begun = process_bytes()
    kv_most = run(engine, requests)
    return Measured(plan.kv_bytes, kv_most, rows_resident(engine), process_bytes() - begun)


def assert_bounded(measured: Measured) -> None:
    slack = MIB // 4  # a row's last page of each tensor, and a step's chunk
    assert MIB // 2 < measured.kv_most <= measured.budget + slack
    assert measured.kv_last == 0
    assert measured.growth <= measured.budget + 3 * MIB


def test_after_a_thousand_requests_of_mixed_length_memory_is_what_it_was(deep: SyntheticModel) -> None:
    assert_bounded(measure(deep))


def test_rows_that_are_not_released_would_be_noticed(deep: SyntheticModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlotKvStore, "_release_row", lambda self, slot: None)
    measured = measure(deep)
    assert measured.kv_most > 2 * measured.budget
    assert measured.growth > measured.budget + 3 * MIB
    with pytest.raises(AssertionError):
        assert_bounded(measured)
