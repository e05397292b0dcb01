"""Microseconds of every kernel of a decode step, through torch's profiler, which sees ONNX Runtime's kernels too.

    python -m tests.bench.cuda_kernels --out kernels.json --model DIR [--streams 1]

Wants a Python with torch for the same CUDA beside ours. The step runs recorded, as it is served.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import read_manifest
from tests.bench.cuda_engine import GREEDY, Bench
from tests.bench.cuda_nodes import short_name

NUM_STEPS = 8


def profile(bench: Bench, num_streams: int, context: int) -> list[dict[str, Any]]:
    """Kernels of one step by what they take together: name, number and microseconds, most first."""
    import torch
    from torch.profiler import ProfilerActivity

    for _ in range(num_streams):
        bench.engine.add(bench.request(context, GREEDY))
    while any(sequence.num_pending > 1 or sequence.slot is None for sequence in bench.engine.scheduler.sequences):
        bench.engine.step()
    for _ in range(6):
        bench.engine.step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(NUM_STEPS):
            bench.engine.step()
        torch.cuda.synchronize()
    taken: dict[str, list[float]] = defaultdict(list)
    for event in seen.events():
        if event.device_type.name == "CUDA":
            taken[event.name].append(event.device_time)
    rows = [
        {"kernel": short_name(name), "number": len(times) / NUM_STEPS, "us": sum(times) / NUM_STEPS}
        for name, times in taken.items()
    ]
    return sorted(rows, key=lambda row: -float(row["us"]))


def main() -> None:
    """Arguments, figures as JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("kernels.json"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--streams", default="1", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--context", type=int, default=512)
    arguments = parser.parse_args()
    bench = Bench(
        arguments.model,
        read_manifest(arguments.model),
        EngineConfig(max_context=4096, kv_memory=4 << 30, prompt_cache="none", swap_memory=0),
    )
    figures: dict[str, Any] = {}
    for streams in arguments.streams:
        rows = profile(bench, streams, arguments.context)
        figures[str(streams)] = rows
        sys.stdout.write(f"{streams} streams: {sum(row['us'] for row in rows):.0f} us of a step\n")
        for row in rows[:40]:
            sys.stdout.write(f"{row['us']:9.1f} us  {row['number']:6.1f} x  {row['kernel']}\n")
        arguments.out.write_text(json.dumps(figures, indent=1))
        for sequence in list(bench.engine.scheduler.sequences):
            bench.engine.cancel(sequence.request.id)
        while bench.engine.has_work:
            bench.engine.step()


if __name__ == "__main__":
    main()
