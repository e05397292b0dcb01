"""`ortserve export` beside optimum and onnxruntime-genai's builder, on one checkpoint: time, memory and size.

Every export runs in child processes of its own, in turns. Peers' environments are named, or made on first use where
there is a package index; a peer without one is reported as not run. Ours are measured with calibration and proof,
which the peers have nothing like, and once without the proof; the reference is the one of the base install, also where
torch is there. Memory is that of all processes of a run together.

  python -m tests.bench.export_peers --make-environments --json out.json
  python -m tests.bench.export_peers --shape qwen2.5-0.5b --ways ours-int8,optimum-int8 --optimum-python PYTHON
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from ortserve.export.toys.shapes import find_shape, llama_config
from tests.bench.exporters import WAYS, Interpreters, Way, environment, find_interpreters
from tests.bench.measurement import Goal, command, finish, script_parser, spread, write_json
from tests.bench.process_tree import Cost, run_measured

MEGABYTE = 1_000_000
SHAPE = "llama-3.2-1b"
MAX_SECONDS, MAX_MEGABYTES, MIN_RATIO = 180.0, 3000.0, 3.0  # the goals, at that shape on two cores
RATED = ("ours-int8", "ours-int4")  # what they are stated for
LOG_END = 3  # lines of a failed run's output that are reported


@dataclass(frozen=True, slots=True)
class Run:
    """One export that ended well."""

    way: str
    round: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    peak_anonymous_bytes: int
    largest_process_bytes: int
    num_samples: int
    output_bytes: int
    step_seconds: tuple[float, ...]


class NotRunError(Exception):
    """An export that did not come to its end; the message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all exports of one comparison share."""

    source: Path
    interpreters: Interpreters
    scratch: Path | None
    deadline: float  # of `perf_counter`


def export(way: Way, setting: Setting, *, number: int, limit_s: float) -> Run:
    """Run all commands of one export and delete what they wrote. Raises `NotRunError`."""
    python = setting.interpreters.found[way.exporter]
    with tempfile.TemporaryDirectory(prefix=f"{way.name}-", dir=setting.scratch) as folder:
        scratch, costs = Path(folder), list[Cost]()
        log, began = scratch / "log", perf_counter()
        for line in way.steps(setting.source, scratch, python):
            left = limit_s - (perf_counter() - began)
            cost = run_measured(line, env=environment(way.exporter), log=log, limit_s=max(1.0, left))
            held = f"{cost.seconds:.0f} s, {cost.peak_bytes / MEGABYTE:.0f} MB"
            if perf_counter() - began >= limit_s:
                raise NotRunError(f"was not finished within {limit_s:.0f} s (step {len(costs)}: {held})")
            if cost.status != 0:
                said = " / ".join(log.read_text(errors="replace").strip().splitlines()[-LOG_END:])
                raise NotRunError(f"ended with status {cost.status} (step {len(costs)}: {held}): {said[-500:]}")
            costs.append(cost)
        written = sum(path.stat().st_size for path in (scratch / "out").rglob("*") if path.is_file())
    return Run(
        way.name,
        number,
        sum(cost.seconds for cost in costs),
        sum(cost.cpu_seconds for cost in costs),
        max(cost.peak_bytes for cost in costs),
        max(cost.peak_anonymous_bytes for cost in costs),
        max(cost.largest_process_bytes for cost in costs),
        sum(cost.num_samples for cost in costs),
        written,
        tuple(cost.seconds for cost in costs),
    )


@dataclass(slots=True)
class Comparison:
    """What was measured so far."""

    runs: list[Run]
    not_run: dict[str, str]  # ways, and why

    def of(self, way: str) -> list[Run]:
        return [run for run in self.runs if run.way == way]

    def ratios(self, peer: str, ours: str) -> list[float]:
        """The peer's peak over ours, in the rounds that have both."""
        peaks = {run.round: run.peak_bytes for run in self.of(ours)}
        return [run.peak_bytes / peaks[run.round] for run in self.of(peer) if run.round in peaks]

    def goals(self, *, is_rated: bool) -> Iterator[Goal]:
        """Those of what was run; bounds of time and memory hold for the shape that they are stated for."""
        for name in RATED if is_rated else ():
            runs = self.of(name)
            if runs:
                yield Goal(f"{name}, seconds", spread([run.seconds for run in runs]), at_most=MAX_SECONDS)
                peaks = [run.peak_bytes / MEGABYTE for run in runs]
                yield Goal(f"{name}, peak MB", spread(peaks), at_most=MAX_MEGABYTES)
        for peer in WAYS.values():
            ratios = self.ratios(peer.name, f"ours-{peer.precision}") if peer.exporter != "ours" else []
            if ratios:
                name = f"peak memory of {peer.name} over ours-{peer.precision}"
                yield Goal(name, spread(ratios), at_least=MIN_RATIO)

    def table(self) -> Iterator[str]:
        """Medians with their spread."""
        yield f"| {'export':18} | seconds | processor s | peak MB | of it anonymous | largest process | output MB |"
        yield "|---|---|---|---|---|---|---|"
        for name, way in WAYS.items():
            runs = self.of(name)
            if runs:
                cells = [str(spread(values)) for values in _columns(runs)]
                yield f"| {name:18} | {' | '.join(cells)} |"
            elif name in self.not_run:
                yield f"| {name:18} | not run ({way.exporter}): {self.not_run[name]} |"


def _columns(runs: Sequence[Run]) -> Iterator[list[float]]:
    yield [run.seconds for run in runs]
    yield [run.cpu_seconds for run in runs]
    yield [run.peak_bytes / MEGABYTE for run in runs]
    yield [run.peak_anonymous_bytes / MEGABYTE for run in runs]
    yield [run.largest_process_bytes / MEGABYTE for run in runs]
    yield [run.output_bytes / MEGABYTE for run in runs]


def compare(ways: Sequence[Way], num_rounds: int, setting: Setting, report: Callable[[Comparison], None]) -> Comparison:
    """All ways in turns; one that fails is not tried again, and none is begun that the deadline leaves no time for."""
    missing = setting.interpreters.missing
    found = Comparison([], {way.name: missing[way.exporter] for way in ways if way.exporter in missing})
    for number in range(num_rounds):
        for way in ways:
            if way.name in found.not_run:
                continue
            earlier = found.of(way.name)
            left = setting.deadline - perf_counter()
            if left <= max((run.seconds for run in earlier), default=0.0):
                if not earlier:
                    found.not_run[way.name] = "no time was left"
                continue
            try:
                run = export(way, setting, number=number, limit_s=left)
            except NotRunError as error:
                found.not_run[way.name] = f"round {number} {error}"
                print(f"{way.name}: {found.not_run[way.name]}", flush=True)
                continue
            found.runs.append(run)
            sizes = f"peak {run.peak_bytes / MEGABYTE:.0f} MB, {run.output_bytes / MEGABYTE:.0f} MB written"
            print(f"round {number}, {way.name}: {run.seconds:.1f} s, {sizes}", flush=True)
            report(found)
    return found


def chosen_ways(text: str) -> list[Way]:
    """Raises `argparse.ArgumentTypeError` naming all of them."""
    names = text.split(",")
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown: choose from {', '.join(WAYS)}")
    return [WAYS[name] for name in names]


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("--source", type=Path, metavar="DIR", help="checkpoint (default: makes a random one)")
    parser.add_argument("--shape", default=SHAPE, help="of the random one (default %(default)s)")
    parser.add_argument("--ways", type=chosen_ways, default=list(WAYS.values()), metavar="A,B", help=", ".join(WAYS))
    parser.add_argument("--optimum-python", type=Path, metavar="PATH", help="interpreter that has optimum")
    parser.add_argument("--genai-python", type=Path, metavar="PATH", help="interpreter that has onnxruntime-genai")
    parser.add_argument("--make-environments", action="store_true", help="install those that are not named")
    parser.add_argument("--minutes", type=float, default=600.0, help="end after so long (default %(default)s)")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where exports are written (default: temporary)")
    arguments = parser.parse_args()
    deadline = perf_counter() + 60 * arguments.minutes
    interpreters = find_interpreters(arguments.optimum_python, arguments.genai_python, make=arguments.make_environments)
    facts: dict[str, object] = {
        "shape": arguments.shape if arguments.source is None else arguments.source.name,
        "cores": sorted(os.sched_getaffinity(0)),
        "versions": interpreters.versions(),
        "commands": {way.name: way.says for way in arguments.ways},
    }
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as made:
        source = arguments.source or Path(made) / "toy"
        if arguments.source is None:
            subprocess.run(command("toy", arguments.shape, source), check=True)
        setting = Setting(source.resolve(), interpreters, arguments.scratch, deadline)
        is_rated = is_of_shape(source, SHAPE)

        def report(found: Comparison) -> None:
            details = {**facts, "runs": found.runs, "not_run": found.not_run}
            write_json(arguments, list(found.goals(is_rated=is_rated)), details)

        found = compare(arguments.ways, arguments.rounds, setting, report)
    print("\n".join(found.table()))
    details = {**facts, "table": list(found.table()), "runs": found.runs, "not_run": found.not_run}
    return finish(arguments, list(found.goals(is_rated=is_rated)), details)


def is_of_shape(source: Path, shape: str) -> bool:
    """By the sizes in its config.json."""
    config = json.loads((source / "config.json").read_text())
    wanted = llama_config(find_shape(shape), eos_token_id=None)
    return all(config[name] == wanted[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size"))


if __name__ == "__main__":
    sys.exit(main())
