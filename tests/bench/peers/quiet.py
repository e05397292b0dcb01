"""How much of the processors others use while something is measured. Knows no side and no work.

A figure taken while other programs run is one of those programs. Time that the hypervisor takes away counts as theirs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

LEAST_S = 0.05  # processor time is counted in hundredths of a second
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Watch:
    """Processors in use by others than this process and its children, since the last look."""

    def __init__(self) -> None:
        self._at_s, self._others_s, self._share = perf_counter(), others_seconds(), 0.0

    def look(self) -> float:
        """Right after the last look: what that one said, since figures of one run are told together."""
        now = perf_counter()
        if now - self._at_s >= LEAST_S:
            others = others_seconds()
            self._share = max(0.0, (others - self._others_s) / (now - self._at_s))
            self._at_s, self._others_s = now, others
        return self._share


def others_seconds() -> float:
    """Processor time that others have had so far; differences alone mean something."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _, _, interrupts, soft, stolen = map(int, fields[1:9])
    busy = user + nice + system + interrupts + soft + stolen
    return busy * _TICK_S - sum(_seconds(process) for process in family(os.getpid()))


def family(process: int) -> Iterator[int]:
    """The process and, of those that still run, its children and theirs."""
    yield process
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from family(int(child))


def _seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S
