"""Where the time of one step goes, by kind of operator: a decode of all rows, and a prompt chunk.

ONNX Runtime's own profiler on the engine's graph and bindings; what the engine adds around the run is measured by
`engine_overhead.py`.

  python -m tests.bench.step_profile FOLDER --rows 16 --context 256 --json out.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

import numpy as np

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.host.machine import memory_budget
from ortserve.runtime.manifest import Manifest, read_manifest
from ortserve.runtime.plan import plan_engine
from ortserve.runtime.session import Session
from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.slots.runner import Runner
from ortserve.runtime.step import Row, Step
from tests.bench.measurement import finish, script_parser

NUM_WARMUP = 3


def profile(folder: Path, manifest: Manifest, rows: tuple[Row, ...], num_steps: int) -> tuple[float, dict[str, float]]:
    """Milliseconds per step, whole and by operator."""
    config = EngineConfig(max_rows=len(rows), max_context=max(row.end for row in rows) + 32, prompt_cache="none")
    plan = plan_engine(manifest, config, available_bytes=memory_budget().available)
    store = SlotKvStore(manifest.kv, num_rows=plan.num_rows, capacity=plan.capacity, num_host_blocks=1)
    with tempfile.TemporaryDirectory() as scratch:
        session = Session(folder / manifest.graph, profile_prefix=str(Path(scratch) / "step"))
        runner = Runner(manifest, session, store, max_logit_rows=plan.max_logit_rows)
        times = []
        for number in range(NUM_WARMUP + num_steps):
            begun = perf_counter()
            runner.run(Step(number, (), rows))
            times.append((perf_counter() - begun) * 1e3)
        events = json.loads(session.end_profiling().read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    kernels = kernels[len(kernels) * NUM_WARMUP // (NUM_WARMUP + num_steps) :]
    spent: Counter[str] = Counter()
    for event in kernels:
        spent[event["args"]["op_name"]] += event["dur"] / 1e3 / num_steps
    return float(np.median(times[NUM_WARMUP:])), dict(spent.most_common())


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported model")
    parser.add_argument("--rows", type=int, default=16, help="decoding rows (default %(default)s)")
    parser.add_argument("--context", type=int, default=256, help="tokens stored in each row (default %(default)s)")
    parser.add_argument("--chunk", type=int, default=128, help="tokens of the prompt chunk (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of each kind (default %(default)s)")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.folder)
    decode = tuple(Row(str(slot), slot, arguments.context, (17,), 1) for slot in range(arguments.rows))
    chunk = (Row("prompt", 0, arguments.context, tuple(range(17, 17 + arguments.chunk)), 1),)
    report = {}
    for name, rows in ((f"decode of {arguments.rows} rows", decode), (f"chunk of {arguments.chunk} tokens", chunk)):
        whole, spent = profile(arguments.folder, manifest, rows, arguments.steps)
        report[name] = {"ms": whole, "operators": spent}
        print(f"{name} at context {arguments.context}: {whole:.1f} ms")
        for operator, milliseconds in list(spent.items())[:12]:
            print(f"  {operator:<32}{milliseconds:8.2f} ms {milliseconds / whole:6.1%}")
    return finish(arguments, [], {"steps": report})


if __name__ == "__main__":
    sys.exit(main())
