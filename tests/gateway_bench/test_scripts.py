"""The benchmark scripts still run: each once, small, on the synthetic model. Their figures are not looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_driver
from ortserve.runtime.runner import load_session
from ortserve.runtime.testing import write_synthetic_model
from tests.bench.engine_overhead import measure
from tests.bench.measurement import Goal, spread
from tests.bench.prefill_interference import Interference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic")
    write_synthetic_model(path, max_context=2048)
    return path


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_engine_overhead(folder: Path, temperature: float) -> None:
    manifest = read_manifest(folder)
    session = load_session(folder, manifest, num_threads=1)
    side = measure(session, manifest, num_rows=3, temperature=temperature, num_prompt_tokens=20, block=2, num_blocks=3)
    assert len(side.blocks) == 3
    assert all(min(block.engine_s, block.bare_s) > 0 for block in side.blocks)


def test_prefill_interference(folder: Path) -> None:
    driver = open_driver(folder, EngineConfig(max_rows=3, max_context=2048, num_threads=1))
    try:
        one = Interference(driver, num_streams=2, num_prompt_tokens=1000, idle_s=0.1).run(0)
    finally:
        driver.close()
    assert 0 < one.idle_p50 <= one.idle_p99
    assert 0 < one.busy_p50 <= one.busy_p99
    assert min(one.prefill_alone_s, one.prefill_busy_s) > 0


def test_goals() -> None:
    assert spread([3.0, 1.0, 2.0]).median == 2.0
    assert Goal("x", spread([0.93]), at_least=0.92).met
    assert not Goal("x", spread([5.0]), at_most=4.0).met
