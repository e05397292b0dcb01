"""What a long queue adds to every step: seconds of the engine's thread outside its model, by how many wait.

The rows are full and nobody is admitted, as in most steps under a flood. The engine runs the synthetic model; what it
takes beside the model is measured with nobody waiting and with many, in turns.

  python -m tests.bench.long_queue --json out.json
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.request import Request, SamplingParams
from tests.bench.measurement import Goal, finish, script_parser, spread
from tests.runtime.synthetic import Clock, SyntheticModel, load_synthetic_model

ROWS, STEPS, MAX_CONTEXT = 16, 100, 2048
MOST_US = 100.0


def microseconds(model: SyntheticModel, num_waiting: int, num_tenants: int) -> float:
    """Of planning, admission and statistics in one step; the median."""
    plan = model.plan(EngineConfig(max_rows=ROWS, max_context=MAX_CONTEXT))
    engine = model.engine(plan, Clock())
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    for number in range(ROWS + num_waiting):
        tenant = b"%d" % (number % num_tenants)
        engine.add(Request(f"{number}", (1 + number % 90, 2, 3), sampling, tenant=tenant))
    times = []
    for number in range(STEPS):
        begun = perf_counter()
        step = engine.scheduler.plan(number, 0.0)
        engine.stats()
        engine.progress()
        planned = perf_counter() - begun
        assert step is not None
        picked = engine._take_off(step, 0.0).picking.result()
        begun = perf_counter()
        engine.scheduler.commit(step, picked, now_s=0.0, seconds=0.001)
        times.append(planned + perf_counter() - begun)
    engine.close()
    return median(times) * 1e6


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("--waiting", type=int, default=1000, help="requests (default %(default)s)")
    arguments = parser.parse_args()
    tenants = (1, 16, arguments.waiting)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = load_synthetic_model(Path(folder), MAX_CONTEXT)
        for _ in range(arguments.rounds):
            for number in tenants:
                for waiting in (0, arguments.waiting):
                    name = f"{waiting} waiting, {number} tenants"
                    found.setdefault(name, []).append(microseconds(model, waiting, number))
    for name, values in found.items():
        print(f"{name}: {spread(values)} us")
    goals = []
    for number in tenants:
        pairs = zip(
            found[f"{arguments.waiting} waiting, {number} tenants"], found[f"0 waiting, {number} tenants"], strict=True
        )
        added = [many - none for many, none in pairs]
        bound = MOST_US if number < arguments.waiting else None
        goals.append(Goal(f"us that they add, {number} tenants", spread(added), at_most=bound or 1000.0))
    return finish(arguments, goals, {"microseconds": found})


if __name__ == "__main__":
    sys.exit(main())
