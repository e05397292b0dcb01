"""The search for a server's peak, against a model of a server, and the reading of its counters."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from tests.bench.loaded.occupancy import Counters
from tests.bench.loaded.peak import FACTORS, MAX_OFFERS, find_peak


@dataclass
class FakeServer:
    """Carries `capacity`; a closed loop finds a part of it, by its width, and refusing takes time from serving."""

    capacity: float
    shares: dict[int, float]
    refusal: float = 0.05  # of what is refused: lost for others
    offers: list[float] = field(default_factory=list)

    async def closed(self, width: int) -> float:
        return self.shares[width] * self.capacity

    async def offer(self, rate: float) -> float:
        self.offers.append(rate)
        return min(rate, self.capacity - self.refusal * max(rate - self.capacity, 0.0))

    def peak(self) -> float:
        return asyncio.run(find_peak(self.closed, self.offer, tuple(self.shares)))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.6, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("refusal", [0.0, 0.1])
def test_the_peak_is_found_from_a_closed_loop_that_finds_less(share: float, refusal: float) -> None:
    server = FakeServer(3000.0, {1: 0.2, 2: share}, refusal)
    assert 0.95 * server.capacity <= server.peak() <= server.capacity
    assert server.offers[0] == pytest.approx(share * server.capacity)
    assert len(server.offers) <= MAX_OFFERS


def test_a_closed_loop_that_finds_the_peak_is_believed_and_costs_no_more_loops_than_it_must() -> None:
    server = FakeServer(3000.0, {1: 1.0, 2: 0.8})
    assert server.peak() == 3000.0
    assert server.offers == [factor * 3000.0 for factor in FACTORS]


def test_the_search_ends_where_a_server_carries_whatever_comes() -> None:
    server = FakeServer(1e9, {}, refusal=0.0)

    async def closed(_: int) -> float:
        return 100.0

    peak = asyncio.run(find_peak(closed, server.offer, (1, 2)))
    assert len(server.offers) == MAX_OFFERS
    assert peak == max(server.offers)


def test_steps_are_counted_over_all_engines_between_two_moments() -> None:
    text = """# HELP ortserve_steps_total Steps
ortserve_steps_total{model="a"} %d
ortserve_steps_total{model="b"} 5.0
ortserve_failed_steps_total{model="a"} 99.0
ortserve_step_rows_total{model="a"} %d
ortserve_computed_tokens_total{model="a"} %d
"""
    first, last = Counters.of(text % (10, 20, 40), 1.0), Counters.of(text % (30, 320, 640), 3.0)
    assert first == Counters(1.0, 15.0, 20.0, 40.0)
    assert last.since(first) == {"steps_per_s": 10.0, "rows_per_step": 15.0, "tokens_per_step": 30.0}
    assert first.since(Counters(0.0, 15.0, 20.0, 40.0))["rows_per_step"] == 0.0
