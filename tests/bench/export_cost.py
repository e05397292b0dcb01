"""Time and peak resident memory of `ortserve export` in a child process, on a 0.5B-shaped checkpoint.

python -m tests.bench.export_cost --json out.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from tests.bench.measurement import Goal, command, finish, script_parser, spread

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one export; the peak includes pages of files that are mapped."""

    seconds: float
    peak_bytes: int
    cpu_seconds: float


def export(source: Path, destination: Path, words: list[str]) -> Cost:
    """Run one export to its end. Raises `RuntimeError` when it fails."""
    start = perf_counter()
    line = command("export", source, destination, *words)
    child = os.posix_spawn(line[0], line, os.environ)
    _, status, usage = os.wait4(child, 0)
    if status != 0:
        raise RuntimeError(f"the export ended with status {os.waitstatus_to_exitcode(status)}")
    return Cost(perf_counter() - start, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("--source", type=Path, metavar="DIR", help="checkpoint (default: makes a random one)")
    parser.add_argument("--shape", default="qwen2.5-0.5b", help="of the random one (default %(default)s)")
    parser.add_argument("--precision", default="int8", help="default %(default)s")
    parser.add_argument("--no-verify", action="store_true", help="without the proof")
    arguments = parser.parse_args()
    words = ["--precision", arguments.precision, *(["--no-verify"] if arguments.no_verify else [])]
    with tempfile.TemporaryDirectory() as scratch:
        source = arguments.source or Path(scratch) / "toy"
        if arguments.source is None:
            subprocess.run(command("toy", arguments.shape, source), check=True)
        costs = [export(source, Path(scratch) / f"export{number}", words) for number in range(arguments.rounds)]
    for cost in costs:
        print(f"{cost.seconds:.1f} s, peak {cost.peak_bytes / MEGABYTE:.0f} MB, {cost.cpu_seconds:.1f} s of processor")
    goals = [
        Goal("seconds", spread([cost.seconds for cost in costs]), at_most=60.0),
        Goal("peak MB", spread([cost.peak_bytes / MEGABYTE for cost in costs]), at_most=2000.0),
    ]
    return finish(arguments, goals, {"costs": costs})


if __name__ == "__main__":
    sys.exit(main())
