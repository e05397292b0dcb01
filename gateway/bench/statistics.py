"""What a level's timelines amount to: latencies, rates and failures. Knows no sockets and prints nothing.

Latencies count from the moment a request was due (open loop) or sent (closed loop). A percentile is a value that was
really observed: the smallest one that at least that share of the observations does not exceed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ortserve.gateway.bench.frames import Timeline
from ortserve.gateway.bench.load import LevelRun, Sample
from ortserve.gateway.bench.workload import ClosedLoop

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of durations in seconds."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class FailureCount:
    """Requests that failed alike, with the first message."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class LevelReport:
    """One level. Token counts and latencies are of completed requests; None: nothing was observed."""

    mode: Literal["closed", "open"]
    load: float  # concurrency, or requests per second
    num_requests: int
    num_completed: int
    num_short: int  # completed with fewer tokens than asked
    failures: tuple[FailureCount, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    window_s: float  # from the first request's start to the last one's end
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float  # prompt and output
    steady_tokens_per_s: float | None  # output, while every worker of a closed loop had a request running
    ttft: Distribution | None  # time to the first text
    itl: Distribution | None  # per token: a frame with k tokens after a gap of g counts as k gaps of g / k
    frame_gap: Distribution | None  # between frames, as a reader sees them
    end_to_end: Distribution | None
    queue_delay: Distribution | None  # open loop: this client's own lateness
    client_cpu_share: float  # of one core
    client_cpu_us_per_frame: float


def summarize(run: LevelRun, *, num_output_tokens: int) -> LevelReport:
    """The report of one level whose requests asked for `num_output_tokens` each."""
    done = [sample for sample in run.samples if sample.timeline.failure is None]
    times = [sample.timeline for sample in done]
    starts = [sample.timeline.start_s for sample in run.samples]
    window = max((sample.timeline.end_s for sample in run.samples), default=0.0) - min(starts, default=0.0)
    rate = 1 / window if window > 0 else 0.0
    prompt, output = sum(t.num_prompt_tokens for t in times), sum(t.num_output_tokens for t in times)
    closed = isinstance(run.level, ClosedLoop)
    num_frames = sum(len(sample.timeline.arrivals) for sample in run.samples)
    gaps, weights = _token_gaps(times)
    return LevelReport(
        mode="closed" if closed else "open",
        load=run.level.concurrency if isinstance(run.level, ClosedLoop) else run.level.rate,
        num_requests=len(run.samples),
        num_completed=len(done),
        num_short=sum(t.num_output_tokens < num_output_tokens for t in times),
        failures=_failures(run.samples),
        num_prompt_tokens=prompt,
        num_cached_tokens=sum(t.num_cached_tokens for t in times),
        num_output_tokens=output,
        window_s=window,
        requests_per_s=len(done) * rate,
        output_tokens_per_s=output * rate,
        total_tokens_per_s=(prompt + output) * rate,
        steady_tokens_per_s=_steady_rate(done) if closed else None,
        ttft=distribution(np.array([t.arrivals[0] - t.start_s for t in times if t.arrivals])),
        itl=distribution(gaps / weights, weights),
        frame_gap=distribution(gaps),
        end_to_end=distribution(np.array([t.end_s - t.start_s for t in times])),
        queue_delay=None if closed else distribution(np.array([t.sent_s - t.start_s for t in times])),
        client_cpu_share=run.client_cpu_s / run.wall_s if run.wall_s > 0 else 0.0,
        client_cpu_us_per_frame=run.client_cpu_s / max(num_frames, 1) * 1e6,
    )


def distribution(values: Floats, weights: Floats | None = None) -> Distribution | None:
    """Of `values`, each observed `weights` times; None when there are none."""
    if len(values) == 0:
        return None
    counts = np.ones(len(values)) if weights is None else weights
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99), weights=counts, method="inverted_cdf")
    mean = float(np.average(values, weights=counts))
    return Distribution(round(float(counts.sum())), mean, float(p50), float(p95), float(p99), float(values.max()))


def _token_gaps(timelines: Sequence[Timeline]) -> tuple[Floats, Floats]:
    """Gaps between frames, and how many tokens each gap stands for.

    Where the server sends fewer frames than tokens, frames do not say how many tokens they carry: the request's
    average is used. More frames than tokens (part of a token each) count as one token each.
    """
    gaps: list[Floats] = []
    weights: list[Floats] = []
    for timeline in timelines:
        num_gaps = len(timeline.arrivals) - 1
        if num_gaps < 1:
            continue
        gaps.append(np.diff(np.array(timeline.arrivals)))
        weights.append(np.full(num_gaps, max(timeline.num_output_tokens / (num_gaps + 1), 1.0)))
    if not gaps:
        return np.empty(0), np.empty(0)
    return np.concatenate(gaps), np.concatenate(weights)


def _steady_rate(samples: Sequence[Sample]) -> float | None:
    """Output tokens per second from the moment the last worker has started until the first one runs out of work."""
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for sample in samples:
        start, end = sample.timeline.start_s, sample.timeline.end_s
        first[sample.worker] = min(first.get(sample.worker, start), start)
        last[sample.worker] = max(last.get(sample.worker, end), end)
    if not first:
        return None
    begin, end = max(first.values()), min(last.values())
    if end <= begin:
        return None
    num_tokens = 0.0
    for timeline in (sample.timeline for sample in samples):
        num_inside = sum(begin < arrival <= end for arrival in timeline.arrivals)
        num_tokens += num_inside * timeline.num_output_tokens / max(len(timeline.arrivals), 1)
    return num_tokens / (end - begin)


def _failures(samples: Sequence[Sample]) -> tuple[FailureCount, ...]:
    failures = [sample.timeline.failure for sample in samples]
    found = [failure for failure in failures if failure is not None]
    examples: dict[str, str] = {}
    for failure in found:
        examples.setdefault(failure.kind, failure.message)
    counts = Counter(failure.kind for failure in found)
    return tuple(FailureCount(kind, number, examples[kind]) for kind, number in counts.most_common())
