"""The line of those that wait: the order of arranging everything, at the cost of looking at the first of each line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from ortserve.runtime.request import Request, SamplingParams
from ortserve.runtime.scheduling.fair_order import AGEING_S, NEAR, FairOrder
from ortserve.runtime.scheduling.waiting_line import WaitingLine
from ortserve.runtime.sequence import Sequence, Stage

TENANTS = (b"a", b"b", b"c")


@dataclass
class Waiter:
    """What the line and the order look at, and how often they did."""

    request: Request
    arrival: int
    since_s: float
    pending: int
    stage: Stage = Stage.WAITING
    looks: Counter[str] = field(default_factory=Counter)

    @property
    def waiting_since_s(self) -> float:
        self.looks["since"] += 1
        return self.since_s

    @property
    def num_pending(self) -> int:
        self.looks["pending"] += 1
        return self.pending


def waiter(
    arrival: int, since_s: float, tenant: bytes, *, priority: int = 0, weight: int = 1, pending: int = 9
) -> Waiter:
    request = Request(f"{arrival}", (1,), SamplingParams(), tenant=tenant, priority=priority, weight=weight)
    return Waiter(request, arrival, since_s, pending)


def line_of(waiters: list[Waiter]) -> WaitingLine:
    line = WaitingLine()
    for one in waiters:
        line.add(cast(Sequence, one))
    return line


def in_turns(order: FairOrder, line: WaitingLine, running: list[Waiter], now_s: float) -> list[Any]:
    return list(order.in_turns(line.lines(), cast(list[Sequence], running), now_s))


def by_the_rules(order: FairOrder, waiting: list[Waiter], running: list[Waiter], now_s: float) -> list[Waiter]:
    """As the order is defined, one turn after another, looking at everything in each."""
    clocks, admitted_s, floor = order.values()
    present = {one.request.tenant for one in [*waiting, *running]}
    known = [clocks[tenant] for tenant in present if tenant in clocks]
    floor = max(floor, min(known, default=max(clocks.values(), default=floor)))
    clocks = {tenant: clocks.get(tenant, floor) for tenant in present}
    rows = Counter(one.request.tenant for one in running)
    left, found = list(waiting), []

    def aged(one: Waiter, since_s: float) -> int:
        return -(one.request.priority + int((now_s - since_s) / AGEING_S))

    def turn(head: Waiter) -> tuple[Any, ...]:
        tenant = head.request.tenant
        since_s = max(head.since_s, admitted_s.get(tenant, float("-inf")))
        clock, weight = clocks[tenant], head.request.weight
        return aged(head, since_s), clock // NEAR, rows[tenant] / weight, clock, head.arrival, tenant

    while left:
        heads = [
            min(
                (one for one in left if one.request.tenant == tenant),
                key=lambda one: (aged(one, one.since_s), one.arrival),
            )
            for tenant in {one.request.tenant for one in left}
        ]
        head = heads[0] if len({one.request.tenant for one in waiting}) == 1 else min(heads, key=turn)
        tenant = head.request.tenant
        clocks[tenant] += head.pending / head.request.weight
        rows[tenant] += 1
        admitted_s[tenant] = now_s
        left.remove(head)
        found.append(head)
    return found


@st.composite
def queues(draw: st.DrawFn) -> list[Waiter]:
    """In the order of arrival, in which they have begun to wait; not in that in which they stand in line."""
    since_s, found = 0.0, []
    for arrival in range(draw(st.integers(0, 12))):
        since_s += draw(st.sampled_from((0.0, 1.0, AGEING_S / 2, AGEING_S, 3 * AGEING_S)))
        tenant, priority = draw(st.sampled_from(TENANTS)), draw(st.integers(0, 2))
        weight, pending = draw(st.integers(1, 3)), draw(st.integers(1, 40))
        found.append(waiter(arrival, since_s, tenant, priority=priority, weight=weight, pending=pending))
    return found


@given(queues(), queues(), st.data())
def test_the_order_is_that_of_looking_at_everything(
    waiting: list[Waiter], running: list[Waiter], data: st.DataObject
) -> None:
    order = FairOrder()
    charged = data.draw(st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(1, 90)), max_size=4))
    for tenant, count in charged:
        order.charge(waiter(0, 0.0, tenant).request, count)
    admitted = data.draw(st.lists(st.sampled_from(TENANTS), max_size=2))
    now_s = max((one.since_s for one in [*waiting, *running]), default=0.0) + data.draw(
        st.sampled_from((0.0, 5.0, 100.0))
    )
    for tenant in admitted:
        order.admit(waiter(0, 0.0, tenant).request, now_s)
    line = line_of(data.draw(st.permutations(waiting)))  # those that give up a row come back later than they came first
    leaving = [one for one in waiting if data.draw(st.booleans())]
    for one in leaving:
        line.remove(cast(Sequence, one))
    left = [one for one in waiting if one not in leaving]
    expected = by_the_rules(order, left, running, now_s)
    assert in_turns(order.copy(), line, running, now_s) == expected
    assert order.copy().arrange(left, running, now_s) == expected
    assert len(line) == len(list(line)) == len(left)


def test_who_gets_a_row_meanwhile_changes_nothing_about_the_rest() -> None:
    waiting = [waiter(number, 0.0, TENANTS[number % 2], pending=1 + number) for number in range(8)]
    expected = in_turns(FairOrder(), line_of(waiting), [], 0.0)
    line, order, found = line_of(waiting), FairOrder(), []
    for one in order.in_turns(line.lines(), (), 0.0):
        found.append(one)
        line.remove(one)
        order.admit(one.request, 0.0)
        cast(Any, one).pending = 1  # much of its prompt was cached
        line.add(cast(Sequence, waiter(100 + len(found), 0.0, b"a", priority=9)))  # gave up its row for it
    assert found == expected


def test_a_look_at_the_first_does_not_arrange_the_rest() -> None:
    waiting = [waiter(number, 0.0, TENANTS[number % 3]) for number in range(3000)]
    line, order = line_of(waiting), FairOrder()
    for _ in range(5):
        assert next(order.in_turns(line.lines(), (), 0.0)) is cast(Any, waiting[0])
    looks = sum((one.looks for one in waiting), Counter())
    assert looks.total() <= 5 * 3 * len(TENANTS)


def test_what_is_in_host_memory_is_counted() -> None:
    line, swapped = WaitingLine(), waiter(0, 0.0, b"a")
    swapped.stage = Stage.SWAPPED
    for one in (swapped, waiter(1, 0.0, b"a")):
        line.add(cast(Sequence, one))
    assert (len(line), line.num_swapped) == (2, 1)
    line.remove(cast(Sequence, swapped))
    assert (len(line), line.num_swapped) == (1, 0)
    assert list(line.lines()) == [b"a"]
