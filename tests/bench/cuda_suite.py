"""Everything that is claimed of a GPU, in one command of under ten minutes: the tests, then speed beside a peer's.

    python -m tests.bench.cuda_suite --out DIR                     writes DIR/suite.json and DIR/suite.md
    python -m tests.bench.cuda_suite --out DIR --parts tests,1b    some of it

Each part is a process of its own with a time limit; one that fails or has no time left is recorded as such, never
estimated. Models of real shapes have random weights and are made and exported on the machine itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ortserve.runtime.devices.cuda import CudaDevice
from ortserve.runtime.devices.device import Strided

LIMIT_S = 570.0
GIGABYTES = 4


@dataclass(frozen=True, slots=True)
class Part:
    """One process: its words after `python`, and the file it writes figures to."""

    name: str
    words: tuple[str, ...]
    limit_s: float


def parts(folder: Path) -> list[Part]:
    """All of them, the most important first."""

    def engine(name: str, shape: str, precision: str, *more: str, limit_s: float) -> Part:
        words = ("-m", "tests.bench.cuda_engine", "--shape", shape, "--precision", precision, *more)
        return Part(name, (*words, "--folder", str(folder), "--out", f"{{out}}/{name}.json"), limit_s)

    return [
        Part("tests", ("-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "--junitxml", "{out}/tests.xml"), 150),
        engine("1b-fp16", "llama-3.2-1b", "fp16", "--streams", "1,8,32", limit_s=90),
        Part(
            "1b-transformers",
            ("tests/bench/cuda_peer.py", "--streams", "1,8,32", "--out", "{out}/1b-transformers.json"),
            150,
        ),
        engine("1b-int4", "llama-3.2-1b", "int4", "--streams", "1,8,32", limit_s=80),
        engine("8b-fp16", "llama-3.1-8b", "fp16", "--streams", "1,64", "--context", "1024", limit_s=260),
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


def run(part: Part, out: Path, left_s: float) -> dict[str, Any]:
    """Figures of one part, or why there are none."""
    if left_s < part.limit_s / 3:
        return {"not_run": f"{left_s:.0f} s were left"}
    words = [sys.executable, *(word.format(out=out) for word in part.words)]
    begun = time.perf_counter()
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=min(part.limit_s, left_s), check=False)
    except subprocess.TimeoutExpired:
        return {"not_run": f"it took more than {min(part.limit_s, left_s):.0f} s", **_written(part, out)}
    (out / f"{part.name}.log").write_text(done.stdout + done.stderr)
    found = {"seconds": time.perf_counter() - begun, "status": done.returncode, **_written(part, out)}
    lines = done.stdout.strip().splitlines()
    return found | {"last_line": lines[-1] if lines else ""}


def _written(part: Part, out: Path) -> dict[str, Any]:
    file = out / f"{part.name}.json"
    return {"figures": json.loads(file.read_text())} if file.exists() else {}


def table(results: Mapping[str, Any], bandwidth: float) -> str:
    """What a reader wants to know, in Markdown; a figure that is missing says so."""
    rows = [
        "| model | streams | tokens/s | step ms | idle | of the memory roofline | transformers tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    peer = results.get("1b-transformers", {}).get("figures", {})
    for name in ("1b-fp16", "1b-int4", "8b-fp16"):
        figures = results.get(name, {}).get("figures")
        if figures is None:
            rows.append(f"| {name} | not run: {results.get(name, {}).get('not_run', 'it failed')} | | | | | |")
            continue
        rows += [
            _row(name, key, value, figures, bandwidth, peer)
            for key, value in figures.items()
            if key.startswith("decode") and isinstance(value, dict)
        ]
    return "\n".join(rows) + "\n"


def _row(name: str, key: str, value: Any, figures: Any, bandwidth: float, peer: Any) -> str:
    """One decode; the roofline is reading the weights once, and all rows' keys and values, per step."""
    words = key.split()
    streams = int(words[1])
    if "error" in value:
        return f"| {name} {' '.join(words[2:])} | {streams} | failed: {value['error'][:60]} | | | | |"
    kv = streams * int(figures.get("context", 0)) * int(figures.get("kv_bytes_per_token", 0))
    ideal_s = (figures["weight_bytes"] + kv) / bandwidth
    share = ideal_s / (value["step_ms"] / 1e3)
    beside = peer.get(str(streams), {}).get("tokens_per_s") if name == "1b-fp16" and "greedy" in words else None
    cells = [
        f"{name} {' '.join(words[2:])}",
        str(streams),
        f"{value['tokens_per_s']:,.0f}",
        f"{value['step_ms']:.2f}",
        f"{value['idle_share']:.0%}" if value["idle_share"] == value["idle_share"] else "",
        f"{share:.0%}",
        f"{beside:,.0f}" if beside else "",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Arguments, all parts, two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="where models are made and kept (OUT/models)")
    parser.add_argument("--parts", type=lambda text: text.split(","), help="names, or their beginnings (all)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder or arguments.out / "models"
    folder.mkdir(parents=True, exist_ok=True)
    wanted: Callable[[str], bool] = lambda name: (  # noqa: E731
        arguments.parts is None or any(name.startswith(word) for word in arguments.parts)
    )
    begun = time.perf_counter()
    bandwidth = copy_bandwidth()
    results: dict[str, Any] = {"copy_bytes_per_s": bandwidth}
    for part in parts(folder):
        if wanted(part.name):
            results[part.name] = run(part, arguments.out, LIMIT_S - (time.perf_counter() - begun))
            sys.stdout.write(f"{part.name}: {json.dumps(results[part.name])[:300]}\n")
            sys.stdout.flush()
            (arguments.out / "suite.json").write_text(json.dumps(results, indent=1))
            (arguments.out / "suite.md").write_text(table(results, bandwidth))
    sys.stdout.write(table(results, bandwidth))


if __name__ == "__main__":
    main()
