"""Microseconds of single products on a GPU, by shape, kernel and number of rows, with cold caches.

    python -m tests.bench.cuda_products --out products.json [--only 1b,8b-down] [--rows 1,8,64]

Every product is computed with several matrices of its shape in turn, more than the cache holds, as one recorded graph.
"codes" multiplies 4 or 8 bits on the tensor cores, "plain" is what ONNX Runtime does otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ortserve.runtime.devices.cuda import CudaDevice
from ortserve.runtime.devices.session import DeviceSession

SHAPES = {  # output and input features
    "1b-qkv": (3072, 2048),
    "1b-output": (2048, 2048),
    "1b-gate_up": (16384, 2048),
    "1b-down": (2048, 8192),
    "1b-head": (128256, 2048),
    "8b-qkv": (6144, 4096),
    "8b-output": (4096, 4096),
    "8b-gate_up": (28672, 4096),
    "8b-down": (4096, 14336),
    "8b-head": (128256, 4096),
}
COLD_BYTES, MOST_COPIES = 160 << 20, 24
BLOCK = 32
NUM_LAUNCHES, NUM_TRIALS = 5, 5


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to multiply."""

    name: str
    bits: int  # 16: floats
    multiplies_codes: bool = True

    def num_bytes(self, rows: int, columns: int) -> int:
        """Of a matrix with its scales."""
        scales = 0 if self.bits == 16 else rows * columns // BLOCK * 2
        return rows * columns * self.bits // 8 + scales


KERNELS = (
    Kernel("fp16", 16),
    Kernel("int4 codes", 4),
    Kernel("int4 plain", 4, multiplies_codes=False),
    Kernel("int8 codes", 8),
    Kernel("int8 plain", 8, multiplies_codes=False),
)


def model(kernel: Kernel, rows: int, columns: int, copies: int) -> bytes:
    """Products `y0, y1, ...` of one input and matrices of noise."""
    generator = np.random.default_rng(0)
    half = TensorProto.FLOAT16
    weights, nodes = [], []
    for copy in range(copies):
        if kernel.bits == 16:
            noise = generator.integers(0, 1 << 14, rows * columns, np.uint16)
            stored = numpy_helper.from_array(noise.view(np.float16).reshape(rows, columns), f"w{copy}")
            weights.append(stored)
            nodes.append(helper.make_node("Gemm", ["x", f"w{copy}"], [f"y{copy}"], transB=1))
            continue
        codes = generator.integers(0, 256, (rows, columns // BLOCK, BLOCK * kernel.bits // 8), np.uint8)
        scales = np.full((rows, columns // BLOCK), 0.01, np.float16)
        weights += [numpy_helper.from_array(codes, f"w{copy}"), numpy_helper.from_array(scales, f"s{copy}")]
        options: Any = {"K": columns, "N": rows, "bits": kernel.bits, "block_size": BLOCK}
        inputs = ["x", f"w{copy}", f"s{copy}"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{copy}"], domain="com.microsoft", **options))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", half, ["M", columns])],
        [helper.make_tensor_value_info(f"y{copy}", half, ["M", rows]) for copy in range(copies)],
        initializer=weights,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString())


def measure(device: CudaDevice, kernel: Kernel, shape: tuple[int, int], rows_of_input: Sequence[int]) -> dict[str, Any]:
    """Microseconds of one product for every number of rows."""
    rows, columns = shape
    copies = max(1, min(MOST_COPIES, -(-COLD_BYTES // kernel.num_bytes(rows, columns))))
    session = DeviceSession(model(kernel, rows, columns, copies), device, multiplies_codes=kernel.multiplies_codes)
    binding = session.binding()
    largest = max(rows_of_input)
    noise = np.random.default_rng(1).standard_normal(largest * columns, np.float32).astype(np.float16)
    given, taken = device.allocate(noise.nbytes), device.allocate(largest * rows * 2)
    device.upload(given, noise.view(np.uint8))
    found: dict[str, Any] = {"mib": kernel.num_bytes(rows, columns) / 2**20}
    for count in rows_of_input:
        binding.bind_input("x", given, "float16", (count, columns))
        for copy in range(copies):
            binding.bind_output(f"y{copy}", taken, "float16", (count, rows))
        for _ in range(2):  # the first may look for the fastest kernel
            binding.run()
        launch = device.record(binding.run) or binding.run
        times = []
        for _ in range(NUM_TRIALS):
            device.synchronize()
            begun = time.perf_counter()
            for _ in range(NUM_LAUNCHES):
                launch()
            device.synchronize()
            times.append((time.perf_counter() - begun) / NUM_LAUNCHES / copies * 1e6)
        found[str(count)] = round(median(times), 2)
    return found


def table(results: dict[str, Any], rows_of_input: Sequence[int]) -> str:
    """Microseconds, in Markdown."""
    heads = ["product", "kernel", "MiB", *map(str, rows_of_input)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, found in results.items():
        shape, kernel = name.split(" ", 1)
        cells = [str(found.get(str(count), "")) for count in rows_of_input]
        size = f"{found['mib']:.1f}" if "mib" in found else found.get("error", "")[:60]
        lines.append("| " + " | ".join([shape, kernel, size, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Arguments, all products, JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON; the table lies beside it")
    parser.add_argument("--only", default="", type=lambda text: text.split(","), help="beginnings of products")
    parser.add_argument(
        "--rows", default="1,2,4,8,16,32,64,128,256,2048", type=lambda text: [int(word) for word in text.split(",")]
    )
    arguments = parser.parse_args()
    device = CudaDevice(0)
    results: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        if not name.startswith(tuple(arguments.only)):
            continue
        for kernel in KERNELS:
            if kernel.bits == 8 and not name.endswith("head"):
                continue
            begun = time.perf_counter()
            try:
                found = measure(device, kernel, shape, arguments.rows)
            except Exception as error:  # the next product may well work
                found = {"error": f"{type(error).__name__}: {error}"[:300]}
            results[f"{name} {kernel.name}"] = found
            sys.stdout.write(f"{time.perf_counter() - begun:6.1f} s  {name} {kernel.name}: {json.dumps(found)}\n")
            sys.stdout.flush()
            arguments.out.write_text(json.dumps(results, indent=1))
            arguments.out.with_suffix(".md").write_text(table(results, arguments.rows))
    sys.stdout.write(table(results, arguments.rows))


if __name__ == "__main__":
    main()
