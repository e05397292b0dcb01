"""Times the quantization recipes on this machine and recommends one per workload. Knows no models and no export code.

A chain of matrices of a 0.5B model's feed-forward layers, large enough not to stay in the caches, with the nodes that
export writes. The recipes run in turns, so that a busy machine is equally unfair to all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ortserve.runtime.session import Session

HIDDEN, INNER = 896, 4864  # of the 0.5B shape
_MICROSOFT = "com.microsoft"
_INT8_MARGIN = 1.1  # int8 is several times as accurate: it is worth this factor of time
Array = npt.NDArray[np.generic]


class Recipe(StrEnum):
    """How matrices are stored and multiplied."""

    INT8 = "int8"
    INT4_128 = "int4-128"
    INT4_32 = "int4-32"
    FP32 = "fp32"

    @property
    def flags(self) -> str:
        """The options of `ortserve export` that choose it."""
        precision, _, block = self.value.partition("-")
        return f"--precision {precision}" + (f" --block-size {block}" if block else "")


class Workload(StrEnum):
    """What a step mostly does, and how many tokens it then multiplies."""

    SINGLE_STREAM = "single stream"
    MANY_STREAMS = "many streams"
    PREFILL = "prefill"

    @property
    def num_tokens(self) -> int:
        """Rows of the activations."""
        return {"single stream": 1, "many streams": 16, "prefill": 128}[self.value]


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds per matrix [num_tokens, 896] x [896, 4864]."""

    recipe: Recipe
    workload: Workload
    median_ms: float
    lowest_ms: float
    highest_ms: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recipe for a workload and why."""

    workload: Workload
    recipe: Recipe
    reason: str


def time_recipes(*, num_pairs: int, num_rounds: int, num_threads: int | None = None) -> tuple[Timing, ...]:
    """Medians over `num_rounds` turns of chains of 2 * `num_pairs` matrices (half of that for fp32: it is larger)."""
    lengths = {recipe: max(1, num_pairs // 2) if recipe is Recipe.FP32 else num_pairs for recipe in Recipe}
    chains = {recipe: Session(_chain(recipe, lengths[recipe]), num_threads=num_threads).binding() for recipe in Recipe}
    timings: list[Timing] = []
    for workload in Workload:
        activations = np.random.default_rng(0).standard_normal((workload.num_tokens, HIDDEN), np.float32)
        for binding in chains.values():
            binding.bind_input("x", activations)
            binding.bind_output("y", np.empty((workload.num_tokens, HIDDEN), np.float32))
            binding.run()  # allocates and warms up
        seconds: dict[Recipe, list[float]] = {recipe: [] for recipe in Recipe}
        for _ in range(num_rounds):
            for recipe, binding in chains.items():
                start = perf_counter()
                binding.run()
                seconds[recipe].append((perf_counter() - start) / (2 * lengths[recipe]))
        for recipe, values in seconds.items():
            timings.append(Timing(recipe, workload, 1e3 * median(values), 1e3 * min(values), 1e3 * max(values)))
    return tuple(timings)


def recommend(timings: Sequence[Timing], *, int8_works: bool) -> tuple[Recommendation, ...]:
    """The fastest recipe of each workload; int8 where it is nearly the fastest, for its accuracy."""
    chosen: list[Recommendation] = []
    for workload in Workload:
        usable = [t for t in timings if t.workload is workload and (int8_works or t.recipe is not Recipe.INT8)]
        if not usable:
            continue
        fastest = min(usable, key=lambda timing: timing.median_ms)
        best = next(
            (t for t in usable if t.recipe is Recipe.INT8 and t.median_ms <= _INT8_MARGIN * fastest.median_ms), fastest
        )
        others = ", ".join(f"{t.recipe} {t.median_ms:.2f}" for t in usable if t.recipe is not best.recipe)
        chosen.append(Recommendation(workload, best.recipe, f"{best.median_ms:.2f} ms per matrix; {others}"))
    return tuple(chosen)


def _chain(recipe: Recipe, num_pairs: int) -> bytes:
    """x [T, 896] through matrices to 4864 and back, `num_pairs` times."""
    generator = np.random.default_rng(1)
    nodes: list[NodeProto] = []
    weights: dict[str, Array] = {
        "one": np.asarray(1, np.float32),
        "zero": np.asarray(128, np.uint8),
        "last_axis": np.array([-1], np.int64),
        "ratio": np.asarray(1 / 127, np.float32),
    }
    value = "x"
    for index in range(2 * num_pairs):
        num_columns, num_rows = (HIDDEN, INNER) if index % 2 == 0 else (INNER, HIDDEN)
        name = "y" if index == 2 * num_pairs - 1 else f"v{index}"
        _multiply(recipe, nodes, weights, generator, value=value, name=name, shape=(num_rows, num_columns))
        value = name
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "recipe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", HIDDEN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", HIDDEN])],
        [numpy_helper.from_array(array, name) for name, array in weights.items() if name in used],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_MICROSOFT, 1)]
    model: bytes = helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()
    return model


def _multiply(
    recipe: Recipe,
    nodes: list[NodeProto],
    weights: dict[str, Array],
    generator: np.random.Generator,
    *,
    value: str,
    name: str,
    shape: tuple[int, int],
) -> None:
    """`name` [T, rows] = `value` [T, columns] times a random matrix [rows, columns] of the recipe."""
    num_rows, num_columns = shape
    scale = 1.0 / np.sqrt(num_columns)  # keeps the values' size along the chain
    if recipe is Recipe.FP32:
        weights[f"{name}.w"] = generator.standard_normal(shape, np.float32) * np.float32(scale)
        nodes.append(helper.make_node("Gemm", [value, f"{name}.w"], [name], transB=1))
        return
    if recipe is Recipe.INT8:
        weights[f"{name}.w"] = generator.integers(-127, 128, shape, np.int8)
        weights[f"{name}.s"] = np.full(num_rows, scale / 73, np.float32)
        # One per matrix: without VNNI ONNX Runtime rewrites weights and zero points, and cannot do so to a shared one.
        weights[f"{name}.z"] = np.zeros(num_rows, np.int8)
        nodes.extend(_int8_nodes(value, name))
        return
    block_size = int(recipe.value.removeprefix("int4-"))
    num_blocks = -(-num_columns // block_size)
    weights[f"{name}.w"] = generator.integers(0, 256, (num_rows, num_blocks, block_size // 2), np.uint8)
    weights[f"{name}.s"] = np.full((num_rows, num_blocks), scale / 4.6, np.float32)
    attributes: dict[str, Any] = {
        "bits": 4,
        "block_size": block_size,
        "K": num_columns,
        "N": num_rows,
        "accuracy_level": 4,
    }
    inputs = [value, f"{name}.w", f"{name}.s"]
    nodes.append(helper.make_node("MatMulNBits", inputs, [name], domain=_MICROSOFT, **attributes))


def _int8_nodes(value: str, name: str) -> list[NodeProto]:
    """Each row quantized by its own largest magnitude, multiplied as integers, scaled back."""
    sums = [f"{name}.codes", "one", "zero", f"{name}.w", f"{name}.s", f"{name}.z"]
    return [
        helper.make_node("Abs", [value], [f"{name}.magnitude"]),
        helper.make_node("ReduceMax", [f"{name}.magnitude", "last_axis"], [f"{name}.largest"], keepdims=0),
        helper.make_node("Mul", [f"{name}.largest", "ratio"], [f"{name}.scale"]),
        helper.make_node("Unsqueeze", [f"{name}.scale", "last_axis"], [f"{name}.row_scale"]),
        helper.make_node("Shape", [f"{name}.scale"], [f"{name}.shape"]),
        helper.make_node(
            "ConstantOfShape",
            [f"{name}.shape"],
            [f"{name}.zeros"],
            value=numpy_helper.from_array(np.array([128], np.uint8)),
        ),
        helper.make_node("QuantizeLinear", [value, f"{name}.scale", f"{name}.zeros"], [f"{name}.codes"], axis=0),
        helper.make_node("QGemm", sums, [f"{name}.sums"], domain=_MICROSOFT, transB=1),
        helper.make_node("Mul", [f"{name}.sums", f"{name}.row_scale"], [name]),
    ]
