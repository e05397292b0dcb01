"""The benchmark scripts still run: each once, small, on the synthetic model. Their figures are not looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_driver
from ortserve.runtime.slots.runner import load_session
from ortserve.runtime.testing import write_synthetic_model
from tests.bench.engine_overhead import measure
from tests.bench.loaded.client import Reply, goodput, is_proper
from tests.bench.loaded.report import Report
from tests.bench.measurement import Goal, spread
from tests.bench.prefill_interference import Interference
from tests.bench.under_load import cores


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


def test_what_counts_under_load() -> None:
    whole = Reply(0.0, status=200, end_s=1.0, num_tokens=10, finish="length")
    late = Reply(0.0, status=200, end_s=9.0, num_tokens=10, finish="length")
    broken = Reply(0.0, status=200, end_s=1.0, num_tokens=10, failure="gone")
    assert goodput([whole, late, broken], 0.0, 2.0) == 5.0
    told = {"retry-after": "3"}
    envelope = b'{"error": {"code": "rate_limit_exceeded"}}'
    assert is_proper(Reply(0.0, status=429, headers=told, body=envelope))
    for status, body in ((500, envelope), (503, b"busy"), (0, envelope)):
        assert not is_proper(Reply(0.0, status=status, headers=told, body=body))
    assert not is_proper(Reply(0.0, status=429, body=envelope))
    assert cores("0-2,7") == {0, 1, 2, 7}
    report = Report()
    report.goal("met", 1.0, at_most=1.0)
    report.goal("not", float("nan"), at_most=1.0)
    assert [one["met"] for one in report.goals] == [True, False]
