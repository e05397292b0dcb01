"""A server under more load than it can carry: four questions.

python -m tests.bench.under_load overload|tenants|streams|drain [MODEL] [--server-cores 0-7] [--client-cores 8-15]

overload: arrivals at five times the peak rate; goodput, the wait of those admitted, memory, how others are refused. The
peak is the best of six to eight loops, closed and open; with them it takes nine minutes at the most.
tenants: the time to first token of one tenant, alone and beside another that floods.
streams: so many active streams beside so many idle connections, and as many again over a SIGTERM.
drain: SIGTERM while streams run and wait; none may lose a token.

The server and this client run on cores of their own; what each uses of them is reported. Prompts are token ids, each
request's its own; lengths are exact. Needs ortserve and what that needs, on PYTHONPATH or installed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from pathlib import Path

from tests.bench.loaded.overload import overload
from tests.bench.loaded.report import Report
from tests.bench.loaded.streams import drain, streams
from tests.bench.loaded.tenants import tenants

QUESTIONS = {"overload": overload, "tenants": tenants, "streams": streams, "drain": drain}


def cores(text: str) -> set[int]:
    """0-3,8 as a set."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("model", nargs="*", metavar="MODEL", help="exported folder (the bundled model)")
    add = parser.add_argument
    add("--server-cores", type=cores, help="as 0-7 (all)")
    add("--client-cores", type=cores, help="as 8-15 (all)")
    add(
        "--server-path",
        type=Path,
        metavar="DIR",
        help="modules of the server: another checkout's .types",
    )
    add("--threads", type=int, help="of the server's model (its cores)")
    add(
        "--serve",
        type=shlex.split,
        default=(),
        metavar="OPTIONS",
        help="of the server, as one word: --serve='--engines 1'",
    )
    add("--rows", type=int, default=16, help="%(default)s")
    add("--waiting", type=int, default=64, help="overload: length of the queue (%(default)s)")
    add("--prompt-tokens", type=int, default=64, help="%(default)s")
    add("--output-tokens", type=int, default=64, help="%(default)s")
    add("--last-id", type=int, default=1000, help="prompts are made of ids from a tenth of it to it (%(default)s)")
    add("--factor", type=float, default=5.0, help="overload: offered over peak (%(default)s)")
    add("--settle-s", type=float, default=15.0, help="seconds of a load before anything is measured (%(default)s)")
    add("--peak-s", type=float, default=25.0, help="overload: seconds of each loop that seeks the peak (%(default)s)")
    add("--duration", type=float, default=300.0, help="overload: seconds (%(default)s)")
    add("--samples", type=int, default=100, help="tenants: requests of the quiet one (%(default)s)")
    add("--measure-s", type=float, default=180.0, help="tenants: seconds for these, alone and beside (%(default)s)")
    add("--quiet-prompt-tokens", type=int, default=None, help="tenants: of the quiet one (as the others')")
    add("--factor-flood", type=int, default=8, help="tenants: requests of the other at once, by rows (%(default)s)")
    add("--streams", type=int, default=256, help="streams: active (%(default)s)")
    add("--idle", type=int, default=1000, help="streams: idle connections (%(default)s)")
    add("--limit-s", type=float, default=900.0, help="the whole question; then it has failed (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write everything measured, whatever has happened")
    return parser


async def _within(limit_s: float, arguments: argparse.Namespace, report: Report) -> None:
    async with asyncio.timeout(limit_s):
        await QUESTIONS[arguments.question](arguments, report)


def main() -> int:
    arguments = _parser().parse_intermixed_args()
    if arguments.client_cores:
        os.sched_setaffinity(0, arguments.client_cores)
    report, failure = Report(), None
    try:
        asyncio.run(_within(arguments.limit_s, arguments, report))
    except TimeoutError:
        failure = f"it took longer than {arguments.limit_s:g} s"
    except (OSError, RuntimeError) as error:
        failure = str(error)
    report.write(arguments.json, failure)
    return 0 if failure is None and report.is_met else 1


if __name__ == "__main__":
    sys.exit(main())
