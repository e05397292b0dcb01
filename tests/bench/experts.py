"""One layer of experts in int8: what a step costs by the number of tokens, beside a layer of 8 experts that all run.

A single token reads the same number of bytes in both; what more experts cost beyond that is the routing's.
`python -m tests.bench.experts` prints the median milliseconds of processor time of each, taken in turns in one process.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ortserve.export.architecture import Experts, Linear, Mlp
from ortserve.export.graph.builder import GraphBuilder
from ortserve.export.graph.data_file import DataFile
from ortserve.export.graph.experts import apply_experts
from ortserve.export.recipes.layer_plan import LayerPlan, MatrixPlan, MlpPlan

HIDDEN, INNER, NUM_EXPERTS, ACTIVE = 2048, 768, 128, 8  # Qwen3-30B-A3B's
TOKENS = (1, 4, 16, 64)
ROUNDS = 7


def _matrix(name: str, num_rows: int, num_columns: int, *, is_float: bool = False) -> MatrixPlan:
    return MatrixPlan(name, Linear((name,)), num_rows, num_columns, "fp32" if is_float else "int8", 0)


def _layer(num_experts: int) -> LayerPlan:
    mlps = tuple(
        MlpPlan(
            Mlp(Linear(("gate",)), Linear(("up",)), Linear(("down",))),
            _matrix(f"{index}.gate", INNER, HIDDEN),
            _matrix(f"{index}.up", INNER, HIDDEN),
            _matrix(f"{index}.down", HIDDEN, INNER),
        )
        for index in range(num_experts)
    )
    some = mlps[0].gate
    router = _matrix("router", num_experts, HIDDEN, is_float=True)
    return LayerPlan(0, None, some, some, router, mlps)  # type: ignore[arg-type]  # only the experts are built


def _session(folder: Path, num_experts: int, num_active: int) -> ort.InferenceSession:
    folder.mkdir()
    layer, generator = _layer(num_experts), np.random.default_rng(0)
    experts = Experts(Linear(("router",)), tuple(mlp.mlp for mlp in layer.mlps), INNER, num_active, normalized=True)
    with DataFile(folder / "data", progress=lambda num_bytes: None) as data:
        graph = GraphBuilder(data)
        graph.input("value", np.float32, ["T", HIDDEN])
        graph.input("rows", np.int64, ["T"])
        graph.weight("router.weight", np.float32, (num_experts, HIDDEN), [_normal(generator, num_experts, HIDDEN)])
        for matrix in (matrix for mlp in layer.mlps for matrix in mlp.matrices):
            shape = (matrix.num_rows, matrix.num_columns)
            codes = generator.integers(-127, 128, shape, np.int8)
            graph.weight(f"{matrix.name}.weight", np.int8, shape, [codes])
            graph.weight(f"{matrix.name}.scale", np.float32, shape[:1], [np.full(shape[0], 0.01, np.float32)])
        graph.output(apply_experts(graph, layer, experts, "value", rows="rows"), np.float32, ["T", HIDDEN])
        model = graph.model(name="experts", producer_version="bench")
    onnx.save(model, str(folder / "model.onnx"))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def _normal(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return generator.standard_normal(shape).astype(np.float32)


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        sessions = {"experts": _session(Path(folder) / "experts", NUM_EXPERTS, ACTIVE)}
        sys.stdout.write(f"built and loaded in {time.perf_counter() - begun:.1f} s\n")
        sessions["8 experts"] = _session(Path(folder) / "few", ACTIVE, ACTIVE)
        for num_tokens in TOKENS:
            value = _normal(np.random.default_rng(num_tokens), num_tokens, HIDDEN)
            feeds = {"value": value, "rows": np.zeros(num_tokens, np.int64)}
            taken: dict[str, list[float]] = {name: [] for name in sessions}
            for _ in range(ROUNDS):
                for name, session in sessions.items():
                    start = time.process_time()
                    session.run(None, feeds)
                    taken[name].append((time.process_time() - start) * 1e3)
            medians = ", ".join(f"{name} {statistics.median(times):.2f} ms" for name, times in taken.items())
            sys.stdout.write(f"{num_tokens} tokens: {medians}\n")


if __name__ == "__main__":
    main()
