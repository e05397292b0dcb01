"""Progress on standard error: a bar with rate and time left on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

EVERY_S = 10.0  # between two lines where there is no terminal
Unit: TypeAlias = Literal["bytes", "steps"]
Advance: TypeAlias = Callable[[int], None]


def _ignore(amount: int) -> None:
    del amount


@contextmanager
def show_progress(title: str, total: int | None, *, wanted: bool, unit: Unit = "bytes") -> Iterator[Advance]:
    """Yields a function that is told how much has just been done; `total` is None where nobody knows."""
    if not wanted:
        yield _ignore
    elif sys.stderr.isatty():
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        yield _Lines(title, total, unit).advance


class _Lines:
    """A line every few seconds, for logs; short work says nothing."""

    def __init__(self, title: str, total: int | None, unit: Unit, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._total, self._unit, self._clock = title, total, unit, clock
        self._began = self._shown = clock()
        self._done = 0

    def advance(self, amount: int) -> None:
        self._done += amount
        now = self._clock()
        if now - self._shown < EVERY_S or not self._total:
            return
        self._shown = now
        rate = self._done / (now - self._began)
        left = max(0, self._total - self._done) / rate
        sys.stderr.write(
            f"{self._title}: {_number(self._done, self._unit)} of {_amount(self._total, self._unit)},"
            f" {_amount(rate, self._unit)}/s, {left:.0f} s left\n"
        )


def _number(number: float, unit: Unit) -> str:
    return f"{number / 1e6:,.1f}" if unit == "bytes" else f"{number:,.3g}"


def _amount(number: float, unit: Unit) -> str:
    return f"{_number(number, unit)} {'MB' if unit == 'bytes' else unit}"


@contextmanager
def _bar(title: str, total: int | None, unit: Unit) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
    if total is None:
        columns.append(TimeElapsedColumn())
    elif unit == "bytes":
        columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        columns += [MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=total is None) as bar:
        task = bar.add_task(title, total=total)
        yield lambda amount: bar.advance(task, amount)
