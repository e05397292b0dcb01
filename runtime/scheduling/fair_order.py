"""Whose turn it is among tenants that wait: those that have been served least, by their weights. Knows no rows.

Start-time fair queueing: each tenant has a clock that runs with the tokens computed for it, divided by its weight; the
slowest clock is next. A tenant that comes back starts at the slowest clock of those at work, or at its own if that is
ahead: idling saves nothing up, and leaving pays no debt. Who is next and has fewer rows than a fair share is given one
that another tenant can spare, and a step in which that tenant's others wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Values
from heapq import heapify, heappop, heapreplace, merge
from typing import Protocol, TypeAlias, TypeVar

from ortserve.runtime.request import Request

AGEING_S = 30.0  # so long in the queue counts as one more priority
NEVER = float("-inf")

NEAR = 64.0  # tokens: tenants that have been served as much as that are told apart by rows, which else pass to and fro

Turn = tuple[
    int, float, float, float, int, bytes
]  # priority negated, clock, rows by weight, exact clock, arrival, tenant


class Waiting(Protocol):
    """What can be given a turn: a sequence, or what is to become one."""

    @property
    def request(self) -> Request:
        """Whose it is, and how urgent."""

    @property
    def arrival(self) -> int:
        """Its place in the order of submission."""

    @property
    def waiting_since_s(self) -> float:
        """When it began to wait."""

    @property
    def num_pending(self) -> int:
        """Tokens that its first steps compute."""


Queued = TypeVar("Queued", bound=Waiting)
Lines: TypeAlias = Values[Values[Queued]]  # of one tenant


class FairOrder:
    """The clocks of all tenants that have sequences in one engine."""

    def __init__(self) -> None:
        self._clocks: dict[bytes, float] = {}
        self._admitted_s: dict[bytes, float] = {}  # when each tenant was last given a row
        self._floor = 0.0

    def copy(self) -> FairOrder:
        """The clocks of now, to try an order with."""
        return FairOrder.of(*self.values())

    def values(self) -> tuple[dict[bytes, float], dict[bytes, float], float]:
        """All it knows, as a copy that can be sent to another process of this host."""
        return self._clocks.copy(), self._admitted_s.copy(), self._floor

    @classmethod
    def of(cls, clocks: dict[bytes, float], admitted_s: dict[bytes, float], floor: float) -> FairOrder:
        """The one that had these values, which become its own."""
        order = cls()
        order._clocks, order._admitted_s, order._floor = clocks, admitted_s, floor
        return order

    def arrange(self, queue: Iterable[Queued], running: Iterable[Waiting], now_s: float) -> list[Queued]:
        """The queue in the order in which it gets rows.

        Larger priorities go first, and within one the tenants take turns; within a tenant those that have waited
        longest. Between tenants, waiting counts from the tenant's last turn: a flood does not age by its own length.
        """
        waiting: dict[bytes, list[Queued]] = {}
        for sequence in queue:
            waiting.setdefault(sequence.request.tenant, []).append(sequence)
        for own in waiting.values():
            own.sort(key=_Aged(now_s))
        return list(self.in_turns({tenant: (own,) for tenant, own in waiting.items()}, running, now_s))

    def in_turns(
        self, waiting: Mapping[bytes, Lines[Queued]], running: Iterable[Waiting], now_s: float
    ) -> Iterator[Queued]:
        """As `arrange`, one after another, of what waits by tenant: lines that are in that order each.

        What is not asked for is not arranged. They must not change meanwhile; that some of them get rows does no harm.
        """
        rows = Counter(sequence.request.tenant for sequence in running)
        self._keep(waiting.keys() | rows.keys())
        if len(waiting) == 1:
            return _merged(next(iter(waiting.values())), now_s)
        return self._take_turns(waiting, rows, now_s)

    def admit(self, request: Request, now_s: float) -> None:
        """A sequence of this request has been given a row."""
        self._admitted_s[request.tenant] = now_s

    def charge(self, request: Request, num_tokens: int) -> None:
        """So many tokens have been computed for this request."""
        clock = self._clocks.get(request.tenant, self._floor)
        self._clocks[request.tenant] = clock + num_tokens / request.weight

    def spared_for(self, sequence: Waiting, running: Iterable[Queued]) -> list[Queued]:
        """Whom another tenant can spare so that this one gets a row: while rows, by weights, are more even afterwards.

        The last one of `running` that the tenant with the most rows has, or nobody. Without this, whoever comes into a
        flood waits until one of its replies is complete. Not for a tenant that has been served more than that one:
        rows would be passed to and fro.
        """
        own, rows = self._rows(sequence, running)
        crowd = max(rows.values(), key=lambda held: len(held) / held[-1].request.weight, default=[])
        if not crowd or crowd[-1].request.priority > sequence.request.priority:
            return []
        is_fairer = (len(own) + 1) / sequence.request.weight <= (len(crowd) - 1) / crowd[-1].request.weight
        return crowd[-1:] if is_fairer and self._clock(crowd[-1]) >= self._clock(sequence) else []

    def making_way(self, newcomer: Waiting, running: Iterable[Queued]) -> set[bytes]:
        """Tenants whose rows may wait a step for a newcomer that has one of `running`.

        Those that hold more rows, by weights, have been served no less than its own, and are no more urgent.
        """
        own, rows = self._rows(newcomer, running)
        num_own, clock = len(own) / newcomer.request.weight, self._clock(newcomer)
        return {
            tenant
            for tenant, held in rows.items()
            if len(held) / held[-1].request.weight > num_own
            and self._clock(held[-1]) >= clock
            and all(other.request.priority <= newcomer.request.priority for other in held)
        }

    def _rows(self, sequence: Waiting, running: Iterable[Queued]) -> tuple[list[Queued], dict[bytes, list[Queued]]]:
        """Those of its tenant, and those of the others by tenant, in their order."""
        rows: dict[bytes, list[Queued]] = {}
        for other in running:
            rows.setdefault(other.request.tenant, []).append(other)
        return rows.pop(sequence.request.tenant, []), rows

    def _clock(self, sequence: Waiting) -> float:
        return self._clocks.get(sequence.request.tenant, self._floor)

    def _take_turns(
        self, waiting: Mapping[bytes, Lines[Queued]], rows: Counter[bytes], now_s: float
    ) -> Iterator[Queued]:
        """One at a time from the tenant with the slowest clock; who has just come has the slowest, and fewest rows."""
        clocks, admitted_s, key = self._clocks, self._admitted_s, _Aged(now_s)
        heads = {
            tenant: lines[0][0] if len(lines) == 1 else min((line[0] for line in lines), key=key)
            for tenant, lines in waiting.items()
        }
        heap = [
            _turn(head, clocks[tenant], rows[tenant], admitted_s.get(tenant, NEVER), now_s)
            for tenant, head in heads.items()
        ]
        heapify(heap)
        orders: dict[bytes, Iterator[Queued]] = {}  # of the tenants that have had a turn: what follows
        while heap:
            _, _, _, clock, _, tenant = heap[0]
            head = heads[tenant]
            clock += head.num_pending / head.request.weight  # what its first step will be charged
            rows[tenant] += 1
            if tenant not in orders:
                orders[tenant] = _merged(waiting[tenant], now_s)
                next(orders[tenant])
            following = next(orders[tenant], None)
            if following is None:
                heappop(heap)
            else:
                heads[tenant] = following
                heapreplace(heap, _turn(following, clock, rows[tenant], now_s, now_s))
            yield head

    def _keep(self, tenants: Iterable[bytes]) -> None:
        """Forget those that have left and are not ahead, and let those that come begin at the slowest clock."""
        clocks = {tenant: self._clocks.get(tenant) for tenant in tenants}
        known = [clock for clock in clocks.values() if clock is not None]
        self._floor = max(self._floor, min(known, default=max(self._clocks.values(), default=self._floor)))
        ahead = {tenant: clock for tenant, clock in self._clocks.items() if clock > self._floor}
        self._clocks = ahead | {tenant: self._floor if clock is None else clock for tenant, clock in clocks.items()}
        self._admitted_s = {tenant: time for tenant, time in self._admitted_s.items() if tenant in clocks}


def aged_priority(sequence: Waiting, now_s: float) -> int:
    """Its priority, and one more for each while it has waited."""
    return sequence.request.priority + int((now_s - sequence.waiting_since_s) / AGEING_S)


def _turn(head: Waiting, clock: float, num_rows: int, admitted_s: float, now_s: float) -> Turn:
    waited_s = now_s - max(head.waiting_since_s, admitted_s)
    priority = head.request.priority + int(waited_s / AGEING_S)
    return -priority, clock // NEAR, num_rows / head.request.weight, clock, head.arrival, head.request.tenant


class _Aged:
    """The order within one tenant at one moment."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def __call__(self, sequence: Waiting) -> tuple[int, int]:
        return -aged_priority(sequence, self._now_s), sequence.arrival


def _merged(lines: Lines[Queued], now_s: float) -> Iterator[Queued]:
    return iter(lines[0]) if len(lines) == 1 else merge(*lines, key=_Aged(now_s))
