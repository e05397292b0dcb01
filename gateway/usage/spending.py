"""What each key has used of its budgets this day and this month, UTC. Knows no file and no route.

A request is admitted while something is left; what it uses is charged when it ends, as the ledger has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ortserve.gateway.access.grant import Budget, Grant, Period
from ortserve.gateway.errors import ApiError, Problem
from ortserve.gateway.usage.line import UsageLine

NUM_DIGITS = 16  # of a digest, enough to tell keys apart


@dataclass(slots=True)
class _Sum:
    tokens: int = 0
    cost: float = 0.0


class Spending:
    """Of all keys. Belongs to the event loop."""

    def __init__(self, lines: Iterable[UsageLine] = (), *, clock: Callable[[], float] = time.time) -> None:
        """`lines` are what an earlier server has written since the month began; the `clock` tells the time of day."""
        self._clock = clock
        self._sums: dict[tuple[str, str], _Sum] = {}  # by period of now and part of a key's digest
        self._day = ""
        for line in lines:
            self.add(line)

    def add(self, line: UsageLine) -> None:
        """Charge what one request has used, if that was in a period of now."""
        self._turn_over()
        now, then = self._now(), datetime.fromtimestamp(line.time, UTC)
        for period in ("day", "month"):
            name = _name(period, then)
            if name == _name(period, now):
                total = self._sums.setdefault((name, line.key_digest), _Sum())
                total.tokens += line.prompt + line.completion
                total.cost += line.cost or 0.0

    def check(self, grant: Grant) -> None:
        """Raise `ApiError` (429) when a budget of the key is used up."""
        if not grant.limits.budgets:
            return
        self._turn_over()
        now = self._now()
        for budget in grant.limits.budgets:
            total = self._sums.get((_name(budget.period, now), key_name(grant.digest)), _Sum())
            used = total.tokens if budget.unit == "tokens" else total.cost
            if used >= budget.amount:
                raise ApiError(_used_up(budget, _end(budget.period, now)))

    def _turn_over(self) -> None:
        """Forget periods that are over."""
        now = self._now()
        day = _name("day", now)
        if day != self._day:
            self._day = day
            names = (day, _name("month", now))
            self._sums = {key: total for key, total in self._sums.items() if key[0] in names}

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def month_start(now_s: float) -> float:
    """When the month of `now_s` began, in seconds since the epoch."""
    now = datetime.fromtimestamp(now_s, UTC)
    return datetime(now.year, now.month, 1, tzinfo=UTC).timestamp()


def key_name(digest: bytes) -> str:
    """What stands for a key where its digest is too long, or tells too much."""
    return digest.hex()[:NUM_DIGITS]


def _name(period: Period, when: datetime) -> str:
    return when.strftime("%Y-%m-%d" if period == "day" else "%Y-%m")


def _end(period: Period, now: datetime) -> datetime:
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return day + timedelta(days=1) if period == "day" else (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def _used_up(budget: Budget, until: datetime) -> Problem:
    amount = f"{budget.amount:g}" if budget.unit == "cost" else f"{budget.amount:.0f} tokens"
    message = (
        f"You exceeded your current quota: this key's budget of {amount} per {budget.period} is used up"
        f" until {until:%Y-%m-%dT%H:%M:%SZ}."
    )
    headers = {"x-should-retry": "false"}  # not within the minute that clients wait at the most
    return Problem(429, message, type="insufficient_quota", code="insufficient_quota", headers=headers)
