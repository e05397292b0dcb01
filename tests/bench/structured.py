"""What grammars cost a step, and what forced tokens save. Two questions, each with its sides in turns on one engine.

Masks: all rows write JSON strings (nearly every id is allowed, nothing is forced) or the same without a grammar; the
share of a step that the engine's thread spends on masks and constraints is measured where it is spent. Forced tokens:
replies whose schema demands long names, with and without the shortcut.

  python -m tests.bench.structured FOLDER --rows 16 --json out.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.grammar.constraint import Constraint, Mask
from ortserve.runtime.grammar.guidance import GuidanceConstraint
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_engine
from ortserve.runtime.request import Grammar, GrammarKind, Request, SamplingParams
from ortserve.runtime.sampling import sampler as sampler_module
from tests.bench.measurement import Goal, Spread, finish, script_parser, spread

PROMPT = tuple(range(40, 104))
STRINGS: dict[str, Any] = {"type": "array", "minItems": 4, "maxItems": 9, "items": {"type": "string", "minLength": 400}}
NAMES = ("the_name_of_the_customer", "the_address_of_delivery", "the_reason_of_the_complaint", "an_appropriate_reply")
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 12} for name in NAMES},
    "required": list(NAMES),
    "additionalProperties": False,
}


class Stopwatch:
    """Adds up what the engine's thread spends in some functions, which it replaces."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            begun = perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += perf_counter() - begun

        setattr(owner, name, timed)


class Unforced:
    """The grammars of an engine without the shortcut."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def compile(self, grammar: Grammar) -> Constraint:
        constraint: Any = self._inner.compile(grammar)
        constraint.forced = lambda: ()
        found: Constraint = constraint
        return found

    def masks(self, wanted: Sequence[tuple[Constraint, Sequence[int]]]) -> list[tuple[Mask, ...]]:
        found: list[tuple[Mask, ...]] = self._inner.masks(wanted)
        return found


def grammar_of(schema: dict[str, Any]) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}}))


def steps_ms(engine: Engine, requests: list[Request], num_steps: int) -> list[float]:
    """Milliseconds of each step in which every row decodes."""
    for request in requests:
        engine.add(request)
    while sum(sequence.num_output_tokens > 2 for sequence in engine.scheduler.sequences) < len(requests):
        engine.step()
    times = []
    for _ in range(num_steps):
        begun = perf_counter()
        engine.step()
        times.append((perf_counter() - begun) * 1e3)
    for request in requests:
        engine.cancel(request.id)
    while engine.has_work:
        engine.step()
    return times


def run_all(engine: Engine, requests: list[Request]) -> tuple[float, float, int, int]:
    """Seconds by the wall and of all processors, steps and tokens."""
    num_tokens = 0
    num_steps = engine.stats().num_steps
    begun, cpu_begun = perf_counter(), process_time()
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for delta in engine.step():
            num_tokens += len(delta.token_ids)
    return perf_counter() - begun, process_time() - cpu_begun, engine.stats().num_steps - num_steps, num_tokens


def requests_of(count: int, sampling: SamplingParams, schema: dict[str, Any] | None) -> list[Request]:
    grammar = None if schema is None else grammar_of(schema)
    return [Request(f"r{row}", (row, *PROMPT), replace(sampling, seed=row), grammar=grammar) for row in range(count)]


def measure_masks(
    engine: Engine, watch: Stopwatch, sampling: SamplingParams, shape: tuple[int, int, int]
) -> tuple[Spread, dict[str, Any]]:
    """The share of a step spent on masks, and both sides' milliseconds; `shape`: rows, rounds, steps of a round."""
    rows, num_rounds, num_steps = shape
    plain, tied, shares = [], [], []
    for _ in range(num_rounds):
        plain.append(median(steps_ms(engine, requests_of(rows, sampling, None), num_steps)))
        watch.seconds = 0.0
        times = steps_ms(engine, requests_of(rows, sampling, STRINGS), num_steps)
        tied.append(median(times))
        shares.append(watch.seconds * 1e3 / sum(times))
    details = {"temperature": sampling.temperature, "plain_ms": plain, "constrained_ms": tied, "share": shares}
    return spread(shares), details


def watch_engine(engine: Engine) -> Stopwatch:
    """Time everything on the engine's thread that only grammars need, waiting for masks included."""
    watch = Stopwatch()
    watch.around(sampler_module, "apply_grammar")
    for name in ("accept", "forced"):
        watch.around(GuidanceConstraint, name)
    begin = engine._masking.begin

    def timed(wanted: Any) -> Any:
        begun = perf_counter()
        future = begin(wanted)
        watch.seconds += perf_counter() - begun
        watch.around(future, "exception")  # where the engine waits for what the model's run did not cover
        return future

    engine._masking.begin = timed  # type: ignore[method-assign]
    return watch


def measure_forced(engine: Engine, rows: int, num_rounds: int) -> tuple[Spread, Spread, dict[str, Any]]:
    """Tokens per second over those without the shortcut: by the wall, and of processor time."""
    sampling = SamplingParams(temperature=1.0, max_tokens=400)
    real = engine.grammars
    sides: dict[bool, list[float]] = {True: [], False: []}
    cpu_sides: dict[bool, list[float]] = {True: [], False: []}
    num_steps = {True: 0, False: 0}
    for _ in range(num_rounds):
        for is_forced in (True, False):
            engine.grammars = real if is_forced else Unforced(real)
            seconds, cpu_s, num_steps[is_forced], num_tokens = run_all(engine, requests_of(rows, sampling, FORM))
            sides[is_forced].append(num_tokens / seconds)
            cpu_sides[is_forced].append(num_tokens / cpu_s)
    engine.grammars = real
    details: dict[str, Any] = {"steps": num_steps[True], "steps_drawn": num_steps[False]}
    details |= {"tokens_per_s": sides[True], "tokens_per_s_drawn": sides[False]}
    details |= {"tokens_per_cpu_s": cpu_sides[True], "tokens_per_cpu_s_drawn": cpu_sides[False]}
    return ratio_of(sides), ratio_of(cpu_sides), details


def ratio_of(sides: dict[bool, list[float]]) -> Spread:
    return spread([forced / drawn for forced, drawn in zip(sides[True], sides[False], strict=True)])


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported model")
    parser.add_argument("--rows", type=int, default=16, help="rows at once (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per turn (default %(default)s)")
    parser.add_argument("--part", choices=("masks", "forced"), help="one question alone")
    arguments = parser.parse_args()
    config = EngineConfig(max_rows=arguments.rows, max_context=1024, prompt_cache="none")
    engine, _ = open_engine(arguments.folder, read_manifest(arguments.folder), config)
    run_all(engine, requests_of(2, SamplingParams(max_tokens=8), FORM))  # reads the tokenizer
    goals: list[Goal] = []
    forced: dict[str, Any] = {}
    if arguments.part != "masks":
        gain, cpu_gain, forced = measure_forced(engine, arguments.rows, arguments.rounds)
        goals += [
            Goal("tokens/s with forced tokens over drawing them", gain, at_least=1.0),
            Goal("tokens per second of processors with forced tokens over drawing them", cpu_gain, at_least=1.0),
        ]
    watch, masks = watch_engine(engine), []
    for temperature in () if arguments.part == "forced" else (0.0, 1.0):
        sampling = SamplingParams(temperature=temperature, max_tokens=400, ignore_eos=True)
        share, details = measure_masks(engine, watch, sampling, (arguments.rows, arguments.rounds, arguments.steps))
        goals.append(
            Goal(f"share of a step for {arguments.rows} masks, temperature {temperature}", share, at_most=0.05)
        )
        masks.append(details)
    engine.close()
    return finish(arguments, goals, {"forced": forced, "masks": masks})


if __name__ == "__main__":
    sys.exit(main())
