"""Decode speed of onnxruntime-genai's engine on a checkpoint that its own builder exports. Knows no ortserve.

python tests/bench/cuda_genai.py --checkpoint DIR --work DIR --precision fp16 --streams 1,8,32 --out genai.json

Wants an environment with onnxruntime-genai-cuda 0.18, onnxruntime-gpu, onnx-ir, torch and transformers. Where it is
missing or the builder refuses, nothing is written but the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PAGED = ("use_paged_attention=true", "enable_cuda_graph=true")  # what its engine batches continuously with
CAPACITY = 256  # events taken at once
PATIENCE_S = 120.0


def build(checkpoint: Path, work: Path, precision: str, provider: str) -> Path:
    """The exported folder, made once. Raises `RuntimeError` with the builder's last lines."""
    target = work / f"genai-{checkpoint.name}-{precision}-{provider}"
    if (target / "genai_config.json").exists():
        return target
    words = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(target)]
    words += ["-p", precision, "-e", provider, "-c", str(work / "genai-cache")]
    if provider == "cuda":
        words += ["--extra_options", *PAGED]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("the builder failed: " + " / ".join((done.stdout + done.stderr).strip().splitlines()[-4:]))
    return target


def measure(engine: Any, num_streams: int, context: int, num_tokens: int, vocabulary: int) -> dict[str, float]:
    """Seconds per token of all streams, from when each has its first one until the first has its last."""
    import onnxruntime_genai as og

    generator = np.random.default_rng(num_streams)
    requests = []
    for _ in range(num_streams):
        request = engine.create_request()
        options = og.TurnOptions(request)
        options.set_do_sample(False)
        options.set_min_generated_tokens(num_tokens)
        options.set_max_generated_tokens(num_tokens)
        request.begin_turn(generator.integers(5, vocabulary, context).astype(np.int32), options)
        requests.append(request)
    buffer = engine.create_event_buffer(CAPACITY)
    counts = [0] * num_streams
    begun = time.perf_counter()
    all_began = first_ended = None
    began_with = 0
    num_ended = 0
    while num_ended < num_streams:
        for event in engine.run(buffer):
            if event.flags & og.EngineEventFlags.FAILED:
                raise RuntimeError(f"a request failed: {event.error_code}")
            if event.flags & og.EngineEventFlags.TOKEN:
                counts[requests.index(event.request)] += 1
            if event.flags & og.EngineEventFlags.TURN_FINISHED:
                num_ended += 1
                if first_ended is None:
                    first_ended = (time.perf_counter(), sum(counts))
        if all_began is None and min(counts) > 0:
            all_began, began_with = time.perf_counter(), sum(counts)
        if time.perf_counter() - begun > PATIENCE_S:
            raise RuntimeError(f"{num_streams} streams took more than {PATIENCE_S:.0f} s")
    for request in requests:
        request.close()
    if all_began is None or first_ended is None or first_ended[0] <= all_began:
        raise RuntimeError("no time was there in which all streams decoded: ask for more tokens")
    rate = (first_ended[1] - began_with) / (first_ended[0] - all_began)
    return {"tokens_per_s": rate, "step_ms": 1e3 * num_streams / rate}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures by number of streams, the best of three rounds after one that warms up."""
    import onnxruntime
    import onnxruntime_genai as og

    begun = time.perf_counter()
    folder = build(arguments.checkpoint, arguments.work, arguments.precision, arguments.provider)
    figures: dict[str, Any] = {
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime-genai": og.__version__,
        "build_s": time.perf_counter() - begun,
    }
    begun = time.perf_counter()
    engine = og.Engine(og.Model(str(folder)))
    figures["load_s"] = time.perf_counter() - begun
    vocabulary = min(100_000, json.loads((arguments.checkpoint / "config.json").read_text())["vocab_size"])
    for streams in arguments.streams:
        try:
            rounds = [measure(engine, streams, arguments.context, arguments.tokens, vocabulary) for _ in range(4)][1:]
            figures[str(streams)] = max(rounds, key=lambda found: found["tokens_per_s"])
        except RuntimeError as error:  # another width may well work
            figures[str(streams)] = {"error": str(error)[:500]}
        sys.stdout.write(f"{streams}: {figures[str(streams)]}\n")
        sys.stdout.flush()
    return figures


def main() -> None:
    """Arguments, figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where its export is made and kept")
    parser.add_argument("--precision", default="fp16", choices=("fp16", "bf16", "int4", "fp32"))
    parser.add_argument("--provider", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--streams", default="1,8,32", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    try:
        figures = run(arguments)
    except Exception as error:  # whatever a missing or refusing library raises: the comparison is not run
        sys.exit(f"not run: {type(error).__name__}: {str(error)[:600]}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
