"""Percentiles against a definition written out, and reports of timelines whose figures are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.gateway.bench.frames import Failure, Timeline
from ortserve.gateway.bench.load import LevelRun, Sample, arrival_offsets
from ortserve.gateway.bench.statistics import distribution, summarize
from ortserve.gateway.bench.workload import ClosedLoop, OpenLoop


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_percentiles_are_observed_values_at_their_rank(values: list[float]) -> None:
    spread = distribution(np.array(values))
    assert spread is not None
    ordered = sorted(values)
    for share, found in ((0.5, spread.p50), (0.95, spread.p95), (0.99, spread.p99)):
        assert found == ordered[math.ceil(share * len(values) - 1e-9) - 1]
    assert spread.max == ordered[-1]
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.count == len(values)


@given(st.lists(st.tuples(st.floats(0, 1e3), st.integers(1, 5)), min_size=1, max_size=50))
def test_a_weight_counts_as_so_many_observations(pairs: list[tuple[float, int]]) -> None:
    values, weights = np.array([value for value, _ in pairs]), np.array([float(weight) for _, weight in pairs])
    weighted, repeated = distribution(values, weights), distribution(np.repeat(values, weights.astype(int)))
    assert weighted is not None
    assert repeated is not None
    assert (weighted.count, weighted.p50, weighted.p95) == (repeated.count, repeated.p50, repeated.p95)
    assert weighted.mean == pytest.approx(repeated.mean)


def test_no_observations_have_no_distribution() -> None:
    assert distribution(np.empty(0)) is None


def timeline(start: float, *arrivals: float, tokens: int | None = None) -> Timeline:
    num_tokens = len(arrivals) if tokens is None else tokens
    return Timeline(start, start + 0.001, arrivals[-1], arrivals, 10, 4, num_tokens, "length")


def closed(*samples: Sample, concurrency: int = 1) -> LevelRun:
    return LevelRun(ClosedLoop(concurrency, 0, len(samples), None), samples, wall_s=10.0, client_cpu_s=0.5)


def test_a_closed_loop_report() -> None:
    failed = replace(timeline(0.0, 1.0), failure=Failure("http_503", "busy"))
    run = closed(
        Sample(0, timeline(0.0, 1.0, 2.0, 4.0)), Sample(0, timeline(4.0, 5.0, 5.5)), Sample(1, failed), concurrency=2
    )
    report = summarize(run, num_output_tokens=3)
    assert (report.num_requests, report.num_completed, report.num_short) == (3, 2, 1)
    assert [(f.kind, f.count, f.example) for f in report.failures] == [("http_503", 1, "busy")]
    assert report.window_s == 5.5
    assert report.output_tokens_per_s == pytest.approx(5 / 5.5)
    assert report.total_tokens_per_s == pytest.approx(25 / 5.5)
    assert report.num_cached_tokens == 8
    assert report.ttft is not None
    assert report.ttft.mean == 1.0
    assert report.itl is not None
    assert (report.itl.count, report.itl.p50, report.itl.max) == (3, 1.0, 2.0)
    assert report.queue_delay is None
    assert report.client_cpu_share == 0.05


def test_a_frame_with_several_tokens_spreads_over_its_gap() -> None:
    report = summarize(closed(Sample(0, timeline(0.0, 1.0, 2.0, 3.0, tokens=6))), num_output_tokens=6)
    assert report.itl is not None
    assert report.frame_gap is not None
    assert (report.itl.count, report.itl.p50) == (4, 0.5)
    assert (report.frame_gap.count, report.frame_gap.p50) == (2, 1.0)


def test_the_steady_rate_leaves_out_the_beginning_and_the_tail() -> None:
    # Worker 1 starts at 1 and ends at 3; inside (1, 3] four tokens arrive.
    first = timeline(0.0, 0.5, 1.5, 2.5, 3.5, 4.5)
    second = timeline(1.0, 2.0, 3.0)
    report = summarize(closed(Sample(0, first), Sample(1, second), concurrency=2), num_output_tokens=5)
    assert report.steady_tokens_per_s == pytest.approx(2.0)


def test_an_open_loop_reports_its_own_lateness() -> None:
    late = replace(timeline(0.0, 2.0), sent_s=0.25)
    report = summarize(LevelRun(OpenLoop(2.0, 0, 1, None), (Sample(0, late),), 2.0, 0.1), num_output_tokens=1)
    assert report.queue_delay is not None
    assert report.queue_delay.max == 0.25
    assert report.ttft is not None
    assert report.ttft.max == 2.0  # from when it was due
    assert report.itl is None
    assert report.steady_tokens_per_s is None


def test_an_empty_level_is_all_zero() -> None:
    report = summarize(closed(), num_output_tokens=1)
    assert (report.num_requests, report.output_tokens_per_s, report.ttft) == (0, 0.0, None)


def test_arrivals_are_a_poisson_process() -> None:
    offsets = np.array(list(arrival_offsets(OpenLoop(50.0, 0, 20_000, None), seed=3)))
    gaps = np.diff(offsets)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)  # exponential: deviation equals mean
    assert np.quantile(gaps, 0.5) == pytest.approx(math.log(2) / 50, rel=0.05)


def test_arrivals_repeat_for_the_same_seed_and_count_the_warm_up() -> None:
    level = OpenLoop(10.0, 3, 7, None)
    offsets = list(arrival_offsets(level, 1))
    assert len(offsets) == 10
    assert offsets == list(arrival_offsets(level, 1)) != list(arrival_offsets(level, 2))


def test_arrivals_end_with_the_duration_after_the_warm_up() -> None:
    offsets = list(arrival_offsets(OpenLoop(100.0, 5, None, 2.0), 1))
    assert 1.8 < offsets[-1] - offsets[5] <= 2.0
