"""Forms of one server in turns: the engine as a thread of the server or in a process of its own, options, other code.

Servers of all forms run at the same time and rest while another has its turn. `streams`: tokens/s, time to first token
and processor time with so many callers in closed loops. `overload`: arrivals at five times what callers in a closed
loop get in the same round, and the tokens/s of replies that end whole meanwhile over that. A form is LABEL=OPTIONS of
`ortserve serve`, and LABEL@DIR=OPTIONS takes another checkout's .types.

  python -m tests.bench.engine_forms MODEL --forms "thread=" "process=--engines 1" "before@DIR/.types="
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from tests.bench.loaded.client import Caller, Reply, Shape, closed_loop, goodput, open_loop, percentile
from tests.bench.loaded.server import Server, serving, watched
from tests.bench.measurement import Goal, script_parser, spread, write_json

SETTLING = 0.25  # of a turn: what it finds then does not count
FACTOR = 5.0  # offered over the closed loop's tokens/s
PARTS = ("streams", "overload")
OTHERS = 0.1  # cores that others may use in a turn that counts


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of server."""

    label: str
    path: Path | None  # modules of another checkout
    options: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Form:
        """From LABEL=OPTIONS or LABEL@DIR=OPTIONS. Raises `ValueError` without a =."""
        head, equals, options = text.partition("=")
        if not equals:
            raise ValueError(f"{text}: a form is LABEL=OPTIONS")
        label, _, path = head.partition("@")
        return cls(label, Path(path) if path else None, tuple(shlex.split(options)))


@dataclass(frozen=True, slots=True)
class Turn:
    """What one form did in one turn. Seconds; cores are processors in use."""

    form: str
    load: str
    round: int
    tokens_per_s: float
    first_p50_s: float
    first_p95_s: float
    loop_us: float  # processor time of the event loop for an output token, refusals included
    server_us: float  # of all of the server, engine processes included
    others: float  # cores that neither server nor client used
    refused_per_s: float


class Stage:
    """Runs turns and keeps what they found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._make, self._numbers = Shape.of(arguments).body, count()
        self.turns: list[Turn] = []

    async def closed(self, form: Form, server: Server, streams: int, number: int) -> float:
        """Tokens/s of so many callers."""
        callers = [Caller(server.port) for _ in range(streams)]
        found = await self._turn(
            form, server, f"{streams} streams", number, lambda end: closed_loop(callers, self._make, end, self._numbers)
        )
        for caller in callers:
            caller.close()
        return found

    async def overload(self, form: Form, server: Server, tokens_per_s: float, number: int) -> float:
        """Tokens/s of arrivals at `FACTOR` times that."""
        rate = FACTOR * tokens_per_s / self._arguments.output_tokens

        async def arrive(_: float) -> list[Reply]:
            found = await open_loop(server.port, rate, self._arguments.turn_s, self._make, self._numbers)
            return found[0]

        return await self._turn(form, server, "overload", number, arrive)

    async def _turn(
        self, form: Form, server: Server, load: str, number: int, run: Callable[[float], Awaitable[list[Reply]]]
    ) -> float:
        begin, seconds = time.perf_counter(), self._arguments.turn_s
        counted, end = begin + SETTLING * seconds, begin + seconds
        async with watched(server, after_s=counted - begin) as use:
            replies = await run(end)
        cores, span = use.cores(), use.at_s[-1] - use.at_s[0]
        found, ended = goodput(replies, counted, end), goodput(replies, use.at_s[0], use.at_s[-1]) * span
        firsts = [one.first_s - one.sent_s for one in replies if one.first_s is not None and one.sent_s >= counted]
        broken = [one for one in replies if one.status not in (200, 429) or one.failure is not None]
        if broken:
            raise RuntimeError(f"{form.label}: {len(broken)} requests failed; the first: {broken[0]}")
        turn = Turn(
            form.label, load, number, found, percentile(firsts, 0.5), percentile(firsts, 0.95),
            1e6 * cores["loop"] * span / max(ended, 1), 1e6 * cores["server"] * span / max(ended, 1), cores["others"],
            sum(one.status == 429 for one in replies) / seconds,
        )  # fmt: skip
        self.turns.append(turn)
        return found


async def take_turns(arguments: argparse.Namespace, servers: Sequence[tuple[Form, Server]], stage: Stage) -> None:
    """All forms at each load, round after round; the first round is to warm up."""
    for number in range(arguments.rounds + 1):
        # Whoever is first finds the machine as another load has left it: each is first in turn.
        order = [*servers[number % len(servers) :], *servers[: number % len(servers)]]
        for streams in arguments.streams if "streams" in arguments.parts else ():
            for form, server in order:
                await stage.closed(form, server, streams, number)
        for form, server in order if "overload" in arguments.parts else ():
            peak = await stage.closed(form, server, arguments.rows, number)
            await stage.overload(form, server, peak, number)


def ratios(turns: Sequence[Turn], form: str, rows: int) -> list[float]:
    """Overload over the closed loop just before it, of each round."""
    found, peak = [], 0.0
    for turn in turns:
        if turn.form == form and turn.load == f"{rows} streams":
            peak = turn.tokens_per_s
        elif turn.form == form and turn.load == "overload":
            found.append(turn.tokens_per_s / peak)
    return found


def show(turns: Sequence[Turn]) -> None:
    """One line for each load and form, medians with their spread."""
    for load in dict.fromkeys(turn.load for turn in turns):
        for form in dict.fromkeys(turn.form for turn in turns):
            own = [turn for turn in turns if (turn.load, turn.form) == (load, form)]
            quiet = [turn for turn in own if turn.others < OTHERS] or own
            print(
                f"{load}, {form}: {spread([one.tokens_per_s for one in quiet])} tokens/s; first token p50"
                f" {spread([one.first_p50_s * 1e3 for one in quiet])} ms, p95"
                f" {spread([one.first_p95_s * 1e3 for one in quiet])} ms; us a token: loop"
                f" {spread([one.loop_us for one in quiet])}, server {spread([one.server_us for one in quiet])};"
                f" {len(own) - len(quiet)} turns left out"
            )


def main() -> int:
    parser = script_parser(__doc__ or "")
    add = parser.add_argument
    add("model", nargs="*", metavar="MODEL", help="exported folder (the bundled model)")
    add("--forms", type=Form.of, nargs="+", required=True, metavar="LABEL[@DIR]=OPTIONS")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    add("--streams", type=int, nargs="+", default=[1, 8, 16, 64], help="closed loops (default: 1 8 16 64)")
    add("--turn-s", type=float, default=3.0, help="seconds (default %(default)s)")
    add("--rows", type=int, default=16, help="of each server; callers before an overload (default %(default)s)")
    add("--waiting", type=int, default=64, help="length of the queue (default %(default)s)")
    add("--prompt-tokens", type=int, default=64, help="default %(default)s")
    add("--output-tokens", type=int, default=64, help="default %(default)s")
    add("--last-id", type=int, default=1000, help="prompts are of ids from a tenth of it to it (default %(default)s)")
    arguments = parser.parse_intermixed_args()
    arguments.server_cores = arguments.threads = None
    stage = Stage(arguments)
    with ExitStack() as stack:
        servers = []
        for form in arguments.forms:
            own = argparse.Namespace(**vars(arguments) | {"server_path": form.path, "serve": form.options})
            options = ("--max-waiting", str(arguments.waiting), "--prompt-cache-memory", "32MiB")
            servers.append((form, stack.enter_context(serving(own, *options))))
        asyncio.run(take_turns(arguments, servers, stage))
    turns = [turn for turn in stage.turns if turn.round]
    show(turns)
    goals = []
    for form in arguments.forms:
        if found := ratios(turns, form.label, arguments.rows):
            goals.append(Goal(f"goodput over the closed loop before it, {form.label}", spread(found), at_least=0.9))
            print(goals[-1])
    write_json(arguments, goals, {"turns": [asdict(turn) for turn in stage.turns]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
