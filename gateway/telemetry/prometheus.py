"""Values as Prometheus metrics of this program. Knows no value."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ortserve.gateway.tally import Tally

Labelled: TypeAlias = dict[tuple[str, ...], float]
Tallies: TypeAlias = dict[tuple[str, ...], Tally]


def counter(name: str, help_: str, values: Labelled | Counter[tuple[str, ...]], labels: tuple[str, ...]) -> Metric:
    """Only ever rising, by the values of its labels."""
    family = CounterMetricFamily(f"ortserve_{name}", help_, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def gauge(name: str, help_: str, values: Labelled, labels: tuple[str, ...] = ()) -> Metric:
    """As it is now, by the values of its labels."""
    family = GaugeMetricFamily(f"ortserve_{name}", help_, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def histogram(name: str, help_: str, tallies: Tallies, labels: tuple[str, ...] = ()) -> Metric:
    """Distributions by the values of their labels."""
    family = HistogramMetricFamily(f"ortserve_{name}", help_, labels=labels)
    for key, tally in tallies.items():
        family.add_metric(key, tally.buckets(), tally.total)
    return family
