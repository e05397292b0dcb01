"""Runs a command and samples the memory of all its processes. Knows /proc and nothing of what is run.

Proportional memory (PSS) counts a page that several processes share once, and pages of mapped files too: they are read
from disk again when memory is short. Anonymous memory, which is not, is summed beside it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import perf_counter, thread_time

INTERVAL_S = 0.2
MAX_SHARE = 0.05  # of a processor that sampling may take: reading a large process's page tables holds it up
KILOBYTE = 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one command and of every process that it started."""

    status: int  # exit status; negative: the signal that ended it
    seconds: float
    cpu_seconds: float
    peak_bytes: (
        int  # proportional, of all processes at one moment; at least what the largest of them held at its highest
    )
    peak_anonymous_bytes: int
    largest_process_bytes: int  # resident at its highest, as the kernel keeps it, and at least what the caller had
    num_samples: int


def run_measured(line: Sequence[str | Path], *, env: Mapping[str, str], log: Path, limit_s: float) -> Cost:
    """Run it to its end, output into `log`; after `limit_s` it is killed with what it has started."""
    done = Event()
    began = perf_counter()
    with log.open("ab") as output:
        child = subprocess.Popen(
            [str(word) for word in line], env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        peaks = _Peaks()
        sampler = Thread(target=_sample, args=(child.pid, peaks, done), daemon=True)
        sampler.start()
        alarm = Thread(target=_kill_late, args=(child.pid, done, limit_s), daemon=True)
        alarm.start()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
        done.set()
        sampler.join()
        alarm.join()
    return Cost(
        child.returncode,
        seconds,
        usage.ru_utime + usage.ru_stime,
        max(peaks.proportional, usage.ru_maxrss * KILOBYTE),  # samples miss peaks, the kernel does not
        peaks.anonymous,
        usage.ru_maxrss * KILOBYTE,
        peaks.num_samples,
    )


class _Peaks:
    """Highest sums so far, written by the sampling thread alone."""

    def __init__(self) -> None:
        self.proportional = 0
        self.anonymous = 0
        self.num_samples = 0


def _sample(session: int, peaks: _Peaks, done: Event) -> None:
    pause = 0.0
    while not done.wait(pause):
        began = thread_time()
        memories = [memory for memory in map(memory_of, _processes(session)) if memory is not None]
        if memories:
            peaks.proportional = max(peaks.proportional, sum(memory[0] for memory in memories))
            peaks.anonymous = max(peaks.anonymous, sum(memory[1] for memory in memories))
            peaks.num_samples += 1
        pause = max(INTERVAL_S, (thread_time() - began) / MAX_SHARE)


def _processes(session: int) -> Iterator[int]:
    """Of a process session: also those whose parents have ended."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(entry.name)) == session:
                    yield int(entry.name)


def memory_of(process: int) -> tuple[int, int] | None:
    """Proportional and anonymous bytes; None: it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    sizes = {name: int(rest.split()[0]) * KILOBYTE for name, _, rest in (line.partition(":") for line in lines)}
    return sizes.get("Pss", 0), sizes.get("Anonymous", 0)


def _kill_late(session: int, done: Event, limit_s: float) -> None:
    if not done.wait(limit_s):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)
