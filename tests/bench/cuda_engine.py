"""The paged engine on a GPU: checks first, then decode, prefill and cache-hit rates on random weights. Knows no HTTP.

    python -m tests.bench.cuda_engine --out cuda.json --shape llama-3.2-1b --precision fp16 --streams 1,8,32

Every part is guarded: one that fails is recorded as its error, and the others run. Weights are noise drawn once and
repeated: speed does not depend on them, and 8 billion fresh ones would take minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from ortserve.export.publish import export_checkpoint
from ortserve.export.toys import toy
from ortserve.export.toys.shapes import SHAPES
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.cuda import CudaDevice
from ortserve.runtime.devices.recordings import Recordings
from ortserve.runtime.engine import Engine
from ortserve.runtime.manifest import Manifest, read_manifest
from ortserve.runtime.opening import open_paged_engine
from ortserve.runtime.request import Request, SamplingParams
from ortserve.runtime.session import runtime_version
from tests.bench.cuda_nodes import recorded_nodes

NUM_NOISE = 1 << 24
GREEDY = SamplingParams(temperature=0, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.8, seed=1, ignore_eos=True)
NARROWED = SamplingParams(temperature=0.8, top_p=0.95, top_k=40, seed=1, ignore_eos=True)


class RepeatedNoise:
    """Stands in for a random generator: windows of one buffer."""

    buffer = np.random.default_rng(0).standard_normal(NUM_NOISE, np.float32)

    def __init__(self, seed: Any) -> None:
        self._offset = abs(hash(str(seed))) % 1009

    def standard_normal(self, size: Any, _dtype: Any = None) -> np.ndarray[Any, Any]:
        count = int(np.prod(size))
        self._offset = (self._offset + 7919) % 4096
        return np.resize(self.buffer[self._offset :], count).reshape(size).copy()


def make_checkpoint(folder: Path, shape: str) -> Path:
    """Random weights, once."""
    checkpoint = folder / f"{shape}-checkpoint"
    if not checkpoint.exists():
        with mock.patch.object(np.random, "default_rng", RepeatedNoise):
            toy.write_toy_checkpoint(SHAPES[shape], checkpoint, seed=0, force=False, progress=False)
    return checkpoint


def make_model(folder: Path, shape: str, precision: str, max_context: int) -> tuple[Manifest, float]:
    """An exported model of random weights, and the seconds that took."""
    begun = time.perf_counter()
    checkpoint = make_checkpoint(folder, shape)
    target = folder / f"{shape}-{precision}"
    if not target.exists():
        export_checkpoint(
            checkpoint,
            target,
            precision=precision,
            device="cuda",
            max_context=max_context,
            progress=False,
            verify=False,
        )
    return read_manifest(target), time.perf_counter() - begun


class Bench:
    """One loaded model; each method returns figures."""

    def __init__(self, folder: Path, manifest: Manifest, config: EngineConfig) -> None:
        begun = time.perf_counter()
        self.device = CudaDevice(0)
        self.engine, self.plan = open_paged_engine(folder, manifest, config, self.device)
        self.manifest = manifest
        self.load_s = time.perf_counter() - begun
        self.serial = 0
        self.nodes: Counter[str] = Counter()  # of the step recorded last, by name

    def request(self, num_tokens: int, sampling: SamplingParams, *, seed: int | None = None) -> Request:
        self.serial += 1
        generator = np.random.default_rng(self.serial if seed is None else seed)
        prompt = tuple(generator.integers(5, min(100_000, self.manifest.num_tokens), num_tokens).tolist())
        return Request(f"r{self.serial}", prompt, replace(sampling, max_tokens=4000))

    def decode(self, num_streams: int, context: int, sampling: SamplingParams, *, steps: int = 60) -> dict[str, float]:
        """Rates of plain decode steps once all streams decode and the step's shape is recorded."""
        requests = [self.request(context, sampling) for _ in range(num_streams)]
        for request in requests:
            self.engine.add(request)
        while self.engine.stats().num_output_tokens < 0 or any(
            sequence.num_pending > 1 or sequence.slot is None for sequence in self.engine.scheduler.sequences
        ):
            self.engine.step()
        with recorded_nodes(self.device) as recorded:
            for _ in range(6):
                self.engine.step()
        if recorded:
            self.nodes = sum(recorded, Counter())  # of the model and of the head
        times = []
        for _ in range(steps):
            begun = time.perf_counter()
            self.engine.step()
            times.append(time.perf_counter() - begun)
        step_s = median(times)
        device_s = self._device_seconds()
        for request in requests:
            self.engine.cancel(request.id)
        drain(self.engine)
        return {
            "step_ms": step_s * 1e3,
            "tokens_per_s": num_streams / step_s,
            "model_and_head_ms": device_s * 1e3,
            "idle_share": 1 - device_s / step_s if device_s else float("nan"),
            "num_kernels": sum(self.nodes.values()),
        }

    def eager(self, num_streams: int, context: int) -> dict[str, float]:
        """The same without recorded work."""
        users: list[Any] = [self.engine._runner, self.engine._sampler]
        with mock.patch.object(self.device, "_can_record", False):
            kept = [user.recordings for user in users]
            for user in users:
                user.recordings = Recordings(self.device)
            found = self.decode(num_streams, context, GREEDY, steps=20)
            for user, recordings in zip(users, kept, strict=True):
                user.recordings = recordings
        return found

    def prefill(self, num_tokens: int) -> dict[str, float]:
        """Seconds to the first token of one long prompt, cold; then again, when the cache knows it."""
        found = {}
        for name in ("warm_up", "cold", "hit"):
            request = self.request(num_tokens, GREEDY, seed=None if name == "warm_up" else num_tokens)
            request = replace(request, sampling=replace(GREEDY, max_tokens=2))
            begun = time.perf_counter()
            self.engine.add(request)
            while not any(delta.token_ids for delta in self.engine.step()):
                pass
            found[name] = time.perf_counter() - begun
            drain(self.engine)
        parameters = self.manifest.num_parameters - self.manifest.vocab_size * self.manifest.hidden_size
        found["tokens_per_s"] = num_tokens / found["cold"]
        found["matrix_tflops"] = 2 * parameters * num_tokens / found["cold"] / 1e12
        return found

    def _device_seconds(self) -> float:
        """Of the recorded model and head, launched back to back without the engine."""
        users: list[Any] = [self.engine._runner, self.engine._sampler]
        launches = [launch for user in users if (launch := user.recordings.newest()) is not None]
        if len(launches) < len(users):
            return 0.0
        self.device.synchronize()
        begun = time.perf_counter()
        for _ in range(20):
            for launch in launches:
                launch()
        self.device.synchronize()
        return (time.perf_counter() - begun) / 20


def read_bytes(folder: Path, manifest: Manifest) -> int:
    """Of weights, in a step: all but the table of embeddings, where the output matrix is stored apart from it."""
    graph = onnx.load(str(folder / manifest.graph), load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    if "lm_head.weight" not in stored:
        return manifest.weight_bytes
    table = stored["embedding.weight"]
    return manifest.weight_bytes - int(np.prod(table.dims)) * tensor_dtype_to_np_dtype(table.data_type).itemsize


def drain(engine: Engine) -> None:
    """Step until nothing is left."""
    while engine.has_work:
        engine.step()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts of one shape and precision."""
    figures: dict[str, Any] = {
        "shape": arguments.shape,
        "precision": arguments.precision,
        "onnxruntime": runtime_version(),
    }
    name = f"{arguments.shape}-{arguments.precision}"

    def part(name: str, measure: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        try:
            figures[name] = measure()
        except Exception as error:  # the next part may well work
            figures[name] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}
        sys.stdout.write(f"{time.perf_counter() - begun:6.1f} s  {name}: {json.dumps(figures[name])[:400]}\n")
        sys.stdout.flush()
        arguments.out.write_text(json.dumps(figures, indent=1))

    folder = arguments.folder or Path(tempfile.mkdtemp())
    manifest, seconds = make_model(folder, arguments.shape, arguments.precision, arguments.max_context)
    figures |= {
        "make_s": seconds,
        "weight_bytes": manifest.weight_bytes,
        "read_bytes": read_bytes(folder / name, manifest),
        "kv_bytes_per_token": manifest.kv.bytes_per_token,
        "context": arguments.context,
    }
    bench = Bench(folder / name, manifest, EngineConfig(max_context=arguments.max_context, prompt_cache="prefix"))
    figures |= {"load_s": bench.load_s, "plan": str(bench.plan)}
    sys.stdout.write(f"made in {seconds:.1f} s, loaded in {bench.load_s:.1f} s: {bench.plan}\n")
    for count in arguments.streams:
        part(f"decode {count} x {arguments.context} greedy", lambda: bench.decode(count, arguments.context, GREEDY))  # noqa: B023
        part(f"kernels {count}", lambda: dict(bench.nodes.most_common()))
    largest = arguments.streams[-1]
    part(f"decode {largest} drawn", lambda: bench.decode(largest, arguments.context, DRAWN, steps=30))
    part(f"decode {largest} narrowed", lambda: bench.decode(largest, arguments.context, NARROWED, steps=30))
    part(f"decode {largest} eager", lambda: bench.eager(largest, arguments.context))
    part(f"prefill {arguments.prefill}", lambda: bench.prefill(arguments.prefill))
    return figures


def main() -> None:
    """Arguments, figures, a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b", choices=tuple(SHAPES))
    parser.add_argument("--precision", default="fp16", choices=("fp16", "bf16", "int4"))
    parser.add_argument("--streams", default="1,8,32", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--max-context", type=int, default=8704)
    parser.add_argument("--prefill", type=int, default=8000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("cuda.json"))
    run(parser.parse_args())


if __name__ == "__main__":
    main()
