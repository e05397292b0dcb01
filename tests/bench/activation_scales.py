"""What calibrated activation scales bring: two exports of one checkpoint, step by step in turns.

Both graphs run through the engine's runner, without scheduler and gateway; ratios are of the plain export's time over
the calibrated one's in the same round, so that what else the machine does falls on both. Repeat it on any machine:

  ortserve toy qwen2.5-0.5b toy
  ortserve export toy plain --activations token --no-verify
  ortserve export toy calibrated --no-verify
  python -m tests.bench.activation_scales plain calibrated --json out.json
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.host.machine import memory_budget
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.plan import plan_engine
from ortserve.runtime.session import int8_precision_mode
from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.slots.runner import Runner, load_session
from ortserve.runtime.step import Row, Step
from tests.bench.measurement import Spread, finish, script_parser, spread

CONTEXT = 256
MAX_CONTEXT = 1024
NUM_WARMUP = 2


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of step."""

    name: str
    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)


def cases(max_rows: int) -> list[Case]:
    """Decodes of one row and of all, prompts of 128 and 512 tokens."""
    decode = [Row(str(slot), slot, CONTEXT, (17,), 1) for slot in range(max_rows)]
    found = [Case("decode of 1 row", (decode[0],)), Case(f"decode of {max_rows} rows", tuple(decode))]
    for length in (128, 512):
        found.append(Case(f"prompt of {length} tokens", (Row("prompt", 0, 0, tuple(range(17, 17 + length)), 1),)))
    return found


def open_runner(folder: Path, max_rows: int) -> Runner:
    """A model ready to run, its cache empty: values there do not change what a step costs."""
    manifest = read_manifest(folder)
    config = EngineConfig(max_rows=max_rows, max_context=MAX_CONTEXT, max_chunk_tokens=512, prompt_cache="none")
    plan = plan_engine(manifest, config, available_bytes=memory_budget().available)
    store = SlotKvStore(manifest.kv, num_rows=plan.num_rows, capacity=plan.capacity, num_host_blocks=1)
    session = load_session(folder, manifest, num_threads=config.num_threads)
    return Runner(manifest, session, store, max_logit_rows=plan.max_logit_rows)


def seconds(runner: Runner, case: Case, number: int) -> float:
    begun = perf_counter()
    runner.run(Step(number, (), case.rows))
    return perf_counter() - begun


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("plain", type=Path, metavar="PLAIN", help="exported with --activations token")
    parser.add_argument("calibrated", type=Path, metavar="CALIBRATED", help="exported with calibrated scales")
    parser.add_argument("--rows", type=int, default=16, help="decoding rows (default %(default)s)")
    parser.set_defaults(rounds=11)
    arguments = parser.parse_args()
    plain, calibrated = (open_runner(folder, arguments.rows) for folder in (arguments.plain, arguments.calibrated))
    print(f"kernels: x64quantprecision {int8_precision_mode()}")
    report: dict[str, dict[str, object]] = {}
    for case in cases(arguments.rows):
        times: list[tuple[float, float]] = []
        for number in range(NUM_WARMUP + arguments.rounds):
            pair = (seconds(plain, case, number), seconds(calibrated, case, number))
            times.append(pair)
        kept = times[NUM_WARMUP:]
        rates: list[Spread] = [spread([case.num_tokens / pair[side] for pair in kept]) for side in (0, 1)]
        ratio = spread([before / after for before, after in kept])
        report[case.name] = {"plain": asdict(rates[0]), "calibrated": asdict(rates[1]), "ratio": asdict(ratio)}
        print(f"{case.name:<24} tok/s plain {rates[0]}, calibrated {rates[1]}, ratio {ratio}", flush=True)
    return finish(arguments, [], {"cases": report})


if __name__ == "__main__":
    sys.exit(main())
