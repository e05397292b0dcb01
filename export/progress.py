"""A progress bar on standard error when that is a terminal, and nothing otherwise. Knows bytes only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _ignore(num_written: int) -> None:
    del num_written


@contextmanager
def show_progress(title: str, num_bytes: int, *, wanted: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many bytes have just been written."""
    if not wanted or not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=num_bytes)
        yield lambda num_written: bar.advance(task, num_written)
