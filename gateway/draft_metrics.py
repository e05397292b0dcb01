"""What speculation has done, as Prometheus metrics. Knows no request; labels are what drafters call their sources."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ortserve.runtime.adaptation import MAX_DRAFT
from ortserve.runtime.draft_stats import DraftStats

_PREFIX = "ortserve_draft"


def draft_metrics(stats: DraftStats | None) -> Iterator[Metric]:
    """Nothing without a drafter."""
    if stats is None:
        return
    on = GaugeMetricFamily(f"{_PREFIX}er_on", "1 while the drafter is asked, 0 once it has failed")
    on.add_metric((), float(stats.is_on))
    yield on
    calls = (
        ("calls", "Times the drafter was asked for guesses, for all sequences of a step at once", stats.num_calls),
        ("missed_deadlines", "Steps that went on without the guesses they waited for", stats.num_missed_deadlines),
        ("drafting_seconds", "Time steps waited for guesses", stats.drafting_s),
        ("verifying_seconds", "Share of the steps' time that guesses took, by their tokens", stats.verifying_s),
    )
    for name, help_, value in calls:
        yield CounterMetricFamily(f"{_PREFIX}_{name}", help_, value=value)
    for name, help_, counts in (
        ("proposed_tokens", "Guesses verified, by source and place in the draft", stats.proposed),
        ("accepted_tokens", "Guesses that held, by source and place in the draft", stats.accepted),
    ):
        family = CounterMetricFamily(f"{_PREFIX}_{name}", help_, labels=("source", "position"))
        for (source, place), count in sorted(counts.items()):
            family.add_metric((source, str(place)), count)
        yield family
    yield _lengths(stats)


def _lengths(stats: DraftStats) -> Metric:
    family = HistogramMetricFamily(
        f"{_PREFIX}_accepted_length", "Guesses of a draft that held before the first wrong one", labels=("source",)
    )
    for source in sorted(stats.drafts):
        below, total, buckets = 0, 0, list[tuple[str, float]]()
        for length in range(MAX_DRAFT + 1):
            count = stats.lengths[source, length]
            below += count
            total += length * count
            buckets.append((str(float(length)), below))
        family.add_metric((source,), [*buckets, ("+Inf", stats.drafts[source])], total)
    return family
