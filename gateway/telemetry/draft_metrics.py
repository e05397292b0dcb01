"""What speculation has done, as Prometheus metrics. Knows no request; labels are models and sources of guesses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import HistogramMetricFamily, Metric

from ortserve.gateway.telemetry.prometheus import Labelled, counter, gauge
from ortserve.runtime.speculation.adaptation import MAX_DRAFT
from ortserve.runtime.speculation.stats import DraftStats

_CALLS = (
    ("calls", "num_calls", "Times the drafter was asked for guesses, for all sequences of a step at once"),
    ("missed_deadlines", "num_missed_deadlines", "Steps that went on without the guesses they waited for"),
    ("drafting_seconds", "drafting_s", "Time steps waited for guesses"),
    ("verifying_seconds", "verifying_s", "Share of the steps' time that guesses took, by their tokens"),
)
_GUESSES = (
    ("proposed_tokens", "proposed", "Guesses verified, by source and place in the draft"),
    ("accepted_tokens", "accepted", "Guesses that held, by source and place in the draft"),
)


def draft_metrics(stats: Mapping[str, DraftStats | None]) -> Iterator[Metric]:
    """By model; nothing of those without a drafter."""
    drafted = {name: one for name, one in stats.items() if one is not None}
    if not drafted:
        return
    on: Labelled = {(name,): one.is_on for name, one in drafted.items()}
    yield gauge("drafter_on", "1 while the drafter is asked, 0 once it has failed", on, ("model",))
    for word, attribute, help_ in _CALLS:
        calls: Labelled = {(name,): getattr(one, attribute) for name, one in drafted.items()}
        yield counter(f"draft_{word}", help_, calls, ("model",))
    for word, attribute, help_ in _GUESSES:
        counts: Labelled = {
            (name, source, str(place)): count
            for name, one in drafted.items()
            for (source, place), count in sorted(getattr(one, attribute).items())
        }
        yield counter(f"draft_{word}", help_, counts, ("model", "source", "position"))
    yield _lengths(drafted)


def _lengths(drafted: Mapping[str, DraftStats]) -> Metric:
    help_ = "Guesses of a draft that held before the first wrong one"
    family = HistogramMetricFamily("ortserve_draft_accepted_length", help_, labels=("model", "source"))
    for name, stats in drafted.items():
        for source in sorted(stats.drafts):
            below, total, buckets = 0, 0, list[tuple[str, float]]()
            for length in range(MAX_DRAFT + 1):
                count = stats.lengths[source, length]
                below += count
                total += length * count
                buckets.append((str(float(length)), below))
            family.add_metric((name, source), [*buckets, ("+Inf", stats.drafts[source])], total)
    return family
