"""Everything that is claimed of a GPU, in one command of under ten minutes: the tests, then speed beside a peer's.

    python -m tests.bench.cuda_suite --out DIR                            writes DIR/suite.json and DIR/suite.md
    python -m tests.bench.cuda_suite --out DIR --parts tests,8b-int4      some of it, or more than the default
    python -m tests.bench.cuda_suite --out DIR --peer-python PYTHON       peers in an environment of their own

Each part is a process of its own with a time limit; one that fails or has no time left is recorded as such, never
estimated. A later run with the same DIR adds its parts to the figures of the earlier ones. Models of real shapes have
random weights and are made and exported on the machine itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from ortserve.runtime.devices.cuda import CudaDevice
from ortserve.runtime.devices.device import Strided
from ortserve.runtime.devices.session import DeviceSession

LIMIT_S = 570.0
GIGABYTES = 4
MATRIX = 8192  # rows and columns of the product whose rate prompts are compared with
DEFAULT = ("tests", "1b-fp16", "1b-transformers", "1b-int4", "8b-fp16")
PEERS = {"1b-fp16": ("1b-transformers", "1b-genai"), "1b-int4": ("", "1b-genai-int4")}  # of the table's last columns
MODELS = ("1b-fp16", "1b-bf16", "1b-int4", "8b-fp16", "8b-int4")


@dataclass(frozen=True, slots=True)
class Part:
    """One process: its words after `python`, and the file it writes figures to."""

    name: str
    words: tuple[str, ...]
    limit_s: float
    is_peer: bool = False  # runs in the peers' environment


def parts(folder: Path) -> list[Part]:
    """All of them, the most important first."""

    def engine(name: str, shape: str, precision: str, *more: str, limit_s: float) -> Part:
        words = ("-m", "tests.bench.cuda_engine", "--shape", shape, "--precision", precision, *more)
        return Part(name, (*words, "--folder", str(folder), "--out", f"{{out}}/{name}.json"), limit_s)

    def other(name: str, module: str, *more: str, limit_s: float, is_peer: bool = False) -> Part:
        words = (f"tests/bench/{module}.py",) if is_peer else ("-m", f"tests.bench.{module}")
        return Part(name, (*words, *more, "--out", f"{{out}}/{name}.json"), limit_s, is_peer)

    genai = ("--checkpoint", str(folder / "llama-3.2-1b-checkpoint"), "--work", str(folder), "--streams", "1,8,32")
    return [
        Part("tests", ("-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "--junitxml", "{out}/tests.xml"), 170),
        engine("1b-fp16", "llama-3.2-1b", "fp16", "--streams", "1,8,32", limit_s=90),
        other("1b-transformers", "cuda_peer", "--streams", "1,8,32", limit_s=150, is_peer=True),
        engine("1b-int4", "llama-3.2-1b", "int4", "--streams", "1,8,32", limit_s=100),
        engine("8b-fp16", "llama-3.1-8b", "fp16", "--streams", "1,64", "--context", "1024", limit_s=260),
        engine("8b-int4", "llama-3.1-8b", "int4", "--streams", "1,64", "--context", "1024", limit_s=300),
        engine("1b-bf16", "llama-3.2-1b", "bf16", "--streams", "1,8,32", limit_s=90),
        other("1b-genai", "cuda_genai", *genai, "--precision", "fp16", limit_s=240, is_peer=True),
        other("1b-genai-int4", "cuda_genai", *genai, "--precision", "int4", limit_s=240, is_peer=True),
        other("drafts", "cuda_features", "drafts", "--folder", str(folder), limit_s=150),
        other("regimes", "cuda_features", "regimes", "--folder", str(folder), "--streams", "1,32", limit_s=100),
        other("forms-1b", "cuda_forms", "--folder", str(folder), limit_s=330),
    ]


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy on the device."""
    device = CudaDevice(0)
    size = GIGABYTES << 30
    source, target = device.allocate(size), device.allocate(size)
    best = 0.0
    for _ in range(5):
        device.synchronize()
        begun = time.perf_counter()
        device.copy(Strided(target, size), Strided(source, size), width=size, height=1)
        device.synchronize()
        best = max(best, 2 * size / (time.perf_counter() - begun))
    return best


def matrix_rate() -> float:
    """Floating-point operations per second of one large bfloat16 product, in ONNX Runtime as in a model."""
    shape = [MATRIX, MATRIX]
    inputs = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, shape) for name in "ab"]
    outputs = [helper.make_tensor_value_info("c", TensorProto.BFLOAT16, shape)]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", inputs, outputs)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    device = CudaDevice(0)
    binding = DeviceSession(model.SerializeToString(), device).binding()
    noise = np.random.default_rng(0).standard_normal(MATRIX * MATRIX, np.float32).astype(ml_dtypes.bfloat16)
    for name in "ab":
        address = device.allocate(noise.nbytes)
        device.upload(address, noise.view(np.uint8))
        binding.bind_input(name, address, "bfloat16", (MATRIX, MATRIX))
    binding.bind_output("c", device.allocate(noise.nbytes), "bfloat16", (MATRIX, MATRIX))
    best = 0.0
    for _ in range(5):
        device.synchronize()
        begun = time.perf_counter()
        for _ in range(10):
            binding.run()
        device.synchronize()
        best = max(best, 10 * 2 * MATRIX**3 / (time.perf_counter() - begun))
    return best


def run(part: Part, out: Path, left_s: float, peer_python: str) -> dict[str, Any]:
    """Figures of one part, or why there are none."""
    if left_s < part.limit_s / 3:
        return {"not_run": f"{left_s:.0f} s were left"}
    python = peer_python if part.is_peer else sys.executable
    words = [python, *(word.format(out=out) for word in part.words)]
    (out / f"{part.name}.json").unlink(missing_ok=True)  # of an earlier run
    log = out / f"{part.name}.log"
    begun = time.perf_counter()
    try:
        with log.open("w") as file:
            limit = min(part.limit_s, left_s)
            done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"not_run": f"it took more than {limit:.0f} s", **_written(part, out)}
    found = {"seconds": time.perf_counter() - begun, "status": done.returncode, **_written(part, out)}
    lines = log.read_text().strip().splitlines()
    return found | {"last_line": lines[-1] if lines else ""}


def _written(part: Part, out: Path) -> dict[str, Any]:
    file = out / f"{part.name}.json"
    return {"figures": json.loads(file.read_text())} if file.exists() else {}


def table(results: Mapping[str, Any]) -> str:
    """What a reader wants to know, in Markdown; a figure that is missing says so."""
    rows = [
        "| model | streams | tokens/s | step ms | idle | kernels | of the memory roofline | transformers | genai |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    prompts = [
        "| prompt | cold s | of the matrix rate | hit s | cold over hit |",
        "|---|---|---|---|---|",
    ]
    for name in MODELS:
        if name not in results:
            continue
        figures = results[name].get("figures")
        if figures is None:
            rows.append(f"| {name} | not run: {results[name].get('not_run', 'it failed')} | | | | | | | |")
            continue
        for key, value in figures.items():
            if key.startswith("decode") and isinstance(value, dict):
                rows.append(_decode_row(name, key, value, figures, results))
            if key.startswith("prefill") and isinstance(value, dict) and "cold" in value:
                prompts.append(_prompt_row(name, key, value, results["matrix_flops"]))
    return "\n".join([*rows, "", *prompts]) + "\n"


def _decode_row(name: str, key: str, value: Any, figures: Any, results: Mapping[str, Any]) -> str:
    """One decode; the roofline is reading the weights once, and all rows' keys and values, per step."""
    words = key.split()
    streams = int(words[1])
    if "error" in value:
        return f"| {name} {' '.join(words[2:])} | {streams} | failed: {value['error'][:60]} | | | | | | |"
    kv = streams * int(figures.get("context", 0)) * int(figures.get("kv_bytes_per_token", 0))
    share = (figures["read_bytes"] + kv) / results["copy_bytes_per_s"] / (value["step_ms"] / 1e3)
    peers = PEERS.get(name, ()) if "greedy" in words else ()
    beside = [results.get(peer, {}).get("figures", {}).get(str(streams), {}).get("tokens_per_s") for peer in peers]
    idle = value["idle_share"]
    cells = [
        f"{name} {' '.join(words[2:])}",
        str(streams),
        f"{value['tokens_per_s']:,.0f}",
        f"{value['step_ms']:.2f}",
        f"{idle:.0%}" if idle == idle else "",
        str(value.get("num_kernels", "")),
        f"{share:.0%}",
        *(f"{rate:,.0f}" if rate else "" for rate in (*beside, None, None)[:2]),
    ]
    return "| " + " | ".join(cells) + " |"


def _prompt_row(name: str, key: str, value: Any, matrix_flops: float) -> str:
    share = value["matrix_tflops"] * 1e12 / matrix_flops
    cells = [f"{name} {key}", f"{value['cold']:.4f}", f"{share:.0%}", f"{value['hit']:.4f}"]
    return "| " + " | ".join([*cells, f"{value['cold'] / value['hit']:.1f}"]) + " |"


def main() -> None:
    """Arguments, all parts, two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="where models are made and kept (OUT/models)")
    parser.add_argument("--parts", type=lambda text: text.split(","), help=f"names ({','.join(DEFAULT)})")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for all of them")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has the peers")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder or arguments.out / "models"
    folder.mkdir(parents=True, exist_ok=True)
    known = {part.name: part for part in parts(folder)}
    wanted = [name for name in known if name in (arguments.parts or DEFAULT)]
    if unknown := set(arguments.parts or ()) - set(known):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    begun = time.perf_counter()
    file = arguments.out / "suite.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    results |= {"copy_bytes_per_s": copy_bandwidth(), "matrix_flops": matrix_rate()}
    for name in wanted:
        left_s = arguments.limit - (time.perf_counter() - begun)
        results[name] = run(known[name], arguments.out, left_s, arguments.peer_python)
        sys.stdout.write(f"{name}: {json.dumps(results[name])[:300]}\n")
        sys.stdout.flush()
        file.write_text(json.dumps(results, indent=1))
        (arguments.out / "suite.md").write_text(table(results))
    sys.stdout.write(table(results))


if __name__ == "__main__":
    main()
