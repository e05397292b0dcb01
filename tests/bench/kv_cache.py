"""What an int8 KV cache brings and costs: two exports of one checkpoint, step by step in turns, and their memory.

Both graphs run through the engine's runner, without scheduler and gateway; ratios are of the float cache's time over
the int8 cache's in the same round, so that what else the machine does falls on both. Rows are filled first: memory that
was never written is one page of zeros to the processor, which no real context is. Repeat it on any machine:

  ortserve toy qwen2.5-0.5b toy
  ortserve export toy float --activations token --no-verify
  ortserve export toy int8 --activations token --no-verify --kv int8
  python -m tests.bench.kv_cache float int8 --json out.json
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.session import int8_precision_mode
from ortserve.runtime.slots.kv import SlotKvStore, block_size
from ortserve.runtime.slots.runner import Runner, load_session
from ortserve.runtime.step import Row
from tests.bench.activation_scales import NUM_WARMUP, Case, seconds
from tests.bench.measurement import finish, script_parser, spread

CONTEXT = 1500
PROMPT = 512
DEPTH = 1024  # of a prompt's later chunk


def cases(max_rows: int) -> list[Case]:
    """Decodes of 1, 8 and all rows at a long context, prompts at the beginning and behind others."""
    decode = [Row(str(slot), slot, CONTEXT, (17,), 1) for slot in range(max_rows)]
    counts = sorted({1, min(8, max_rows), max_rows})
    tokens = tuple(range(17, 17 + PROMPT))
    return [
        *(Case(f"decode of {count} rows", tuple(decode[:count])) for count in counts),
        Case(f"prompt of {PROMPT} tokens", (Row("prompt", 0, 0, tokens, 1),)),
        Case(f"the same after {DEPTH}", (Row("prompt", 0, DEPTH, tokens, 1),)),
        Case("verification of 5", (Row("drafted", 0, CONTEXT, tokens[:5], 5),)),
    ]


def open_filled(folder: Path, max_rows: int) -> tuple[Runner, int]:
    """A model ready to run, and the resident bytes that its rows have taken, every one filled to the context."""
    manifest = read_manifest(folder)
    size = block_size(manifest.kv)
    capacity = -(-max(CONTEXT + 64, DEPTH + 2 * PROMPT) // size) * size
    store = SlotKvStore(manifest.kv, num_rows=max_rows, capacity=capacity, num_host_blocks=1)
    session = load_session(folder, manifest, num_threads=None)
    runner = Runner(manifest, session, store, max_logit_rows=64)
    before = resident_bytes()
    generator = np.random.default_rng(1)
    for tensor in range(2 * manifest.kv.num_layers):
        for slot in range(max_rows):
            span = store.span(tensor, slot)[:, :CONTEXT]
            scale = 30 if span.dtype == np.int8 else 1
            span[...] = (scale * generator.standard_normal(span.shape, np.float32)).astype(span.dtype)
    return runner, resident_bytes() - before


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("floats", type=Path, metavar="FLOAT", help="exported without --kv")
    parser.add_argument("codes", type=Path, metavar="INT8", help="exported with --kv int8")
    parser.add_argument("--rows", type=int, default=16, help="decoding rows (default %(default)s)")
    parser.set_defaults(rounds=9)
    arguments = parser.parse_args()
    (floats, float_bytes), (codes, code_bytes) = (
        open_filled(folder, arguments.rows) for folder in (arguments.floats, arguments.codes)
    )
    print(f"kernels: x64quantprecision {int8_precision_mode()}")
    sizes = " and ".join(f"{count / 2**20:.0f}" for count in (float_bytes, code_bytes))
    print(f"{arguments.rows} rows of {CONTEXT} tokens: {sizes} MiB resident")
    report: dict[str, dict[str, object]] = {}
    for case in cases(arguments.rows):
        times = [
            (seconds(floats, case, number) * 1e3, seconds(codes, case, number) * 1e3)
            for number in range(NUM_WARMUP + arguments.rounds)
        ][NUM_WARMUP:]
        sides = [spread([pair[side] for pair in times]) for side in (0, 1)]
        ratio = spread([before / after for before, after in times])
        report[case.name] = {"float": asdict(sides[0]), "int8": asdict(sides[1]), "ratio": asdict(ratio)}
        print(f"{case.name:<24} ms float {sides[0]}, int8 {sides[1]}, ratio {ratio}", flush=True)
    resident = {"float": float_bytes, "int8": code_bytes}
    return finish(arguments, [], {"cases": report, "resident_bytes": resident})


if __name__ == "__main__":
    sys.exit(main())
