"""`ortserve export --dry-run`: what an export would write, and about how much memory and time it would take.

Reads headers and measures this machine for a fraction of a second; writes nothing. Memory and time are estimates from
the terms that dominate, good to a factor of about two.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ortserve.export.graph.matrix import CHUNK_ELEMENTS
from ortserve.export.proof.verify import LARGE_MODEL as LARGE_PROOF
from ortserve.export.proof.verify import LARGE_TEXT, NUM_ROWS, TEXT
from ortserve.export.recipes.layer_plan import MatrixPlan
from ortserve.export.recipes.plan import ExportPlan
from ortserve.export.recipes.planned import ExportOptions, first_plan
from ortserve.export.recipes.quantize import quantize_int8_rows
from ortserve.export.recipes.sensitivity import LARGE_MODEL, MAX_DOCUMENT, MAX_TOKENS, MAX_TOKENS_OF_LARGE
from ortserve.export.sources.checkpoint import Checkpoint

PROCESS_BYTES, PROCESS_SECONDS = 120_000_000, 3.0  # Python with NumPy, onnx and ONNX Runtime
BYTES_PER_PRODUCT = 3_000  # of the graph itself
LIVE_ARRAYS = 6  # of one layer's activations in a NumPy pass
LOGIT_COPIES = 6  # the reference's, those of four ways to feed the rows, and of the stored matrices
SESSION_COPIES = 2.0  # of the weights: mapped, and packed for the kernels
TRIAL_ROWS, TRIAL_COLUMNS = 512, 2048


@dataclass(frozen=True, slots=True)
class MatrixGroup:
    """Matrices of one kind in all layers."""

    kind: str  # qkv, down, lm_head, ...
    precision: str
    count: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would happen."""

    name: str
    source: str
    family: str
    precision: str
    device: str
    num_parameters: int
    num_layers: int
    max_context: int
    calibrates: bool
    matrices: tuple[MatrixGroup, ...]
    file_bytes: Mapping[str, int]
    disk_bytes: int
    bits_per_weight: float
    download_bytes: int  # 0: the checkpoint is here
    peak_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Of this machine, per second."""

    quantized: float  # weights
    read: float  # weights, to float32
    multiplied: float  # multiply-adds in float32


def forecast(
    checkpoint: Checkpoint,
    options: ExportOptions,
    *,
    verify: bool = True,
    download_bytes: int = 0,
    speed: Speed | None = None,
) -> Forecast:
    """Raises `ExportError` for everything that an export would refuse before its first byte."""
    planned = first_plan(checkpoint, options)
    plan = planned.plan
    files = dict(_files(checkpoint, plan))
    speed = speed or measure_speed()
    return Forecast(
        name=checkpoint.name,
        source=checkpoint.source,
        family=plan.architecture.family,
        precision=plan.precision,
        device=plan.device,
        num_parameters=plan.num_parameters,
        num_layers=len(plan.layers),
        max_context=plan.max_context,
        calibrates=planned.calibrates,
        matrices=tuple(_groups(plan)),
        file_bytes=files,
        disk_bytes=sum(files.values()),
        bits_per_weight=round(8 * plan.num_bytes / plan.num_parameters, 3),
        download_bytes=download_bytes,
        peak_bytes=int(_peak(plan, calibrates=planned.calibrates, verify=verify)),
        seconds=round(_seconds(plan, speed, calibrates=planned.calibrates, verify=verify), 1),
    )


def measure_speed() -> Speed:
    """A few products of the size of a small matrix."""
    stored = np.ones((TRIAL_ROWS, TRIAL_COLUMNS), ml_dtypes.bfloat16)
    values = stored.astype(np.float32)
    num_weights = values.size
    quantized = num_weights / _duration(lambda: quantize_int8_rows(values))
    read = num_weights / _duration(lambda: stored.astype(np.float32))
    multiplied = num_weights * TRIAL_ROWS / _duration(lambda: values @ values.T)
    return Speed(quantized, read, multiplied)


def describe_forecast(found: Forecast) -> str:
    """Aligned lines for a terminal."""
    rounding = (
        "measured on calibration text first, which may store some matrices more exactly" if found.calibrates else ""
    )
    download = f", {found.download_bytes / 1e6:,.1f} MB to download" if found.download_bytes else ""
    rows = [
        ("name", f"{found.name} ({found.family}, {found.precision} for {found.device})"),
        ("source", f"{found.source}{download}"),
        ("size", f"{found.num_parameters:,} parameters in {found.num_layers} layers, context {found.max_context:,}"),
        ("rounding", rounding),
        *(
            ("matrices" if place == 0 else "", f"{group.count:4} x {group.kind:18} {group.precision:5}"
             f" {group.num_bytes / 1e6:12,.2f} MB")
            for place, group in enumerate(found.matrices)
        ),
        *(("files" if place == 0 else "", f"{size / 1e6:12,.2f} MB  {name}")
          for place, (name, size) in enumerate(found.file_bytes.items())),
        ("on disk", f"{found.disk_bytes / 1e6:,.1f} MB, {found.bits_per_weight:g} bits per parameter"),
        ("peak memory", f"about {found.peak_bytes / 1e6:,.0f} MB"),
        ("time", f"about {found.seconds:,.0f} s on this machine"),
    ]  # fmt: skip
    lines = [f"{label:12} {text}" for label, text in rows if text]
    return "\n".join([*lines, "nothing was written"]) + "\n"


def _duration(work: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return max(min(times), 1e-6)


def _groups(plan: ExportPlan) -> Iterator[MatrixGroup]:
    counts: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for matrix in plan.matrices():
        key = (_kind(matrix), matrix.precision)
        counts[key] += 1
        sizes[key] += matrix.num_bytes
    for (kind, precision), count in counts.items():
        yield MatrixGroup(kind, precision, count, sizes[kind, precision])


def _kind(matrix: MatrixPlan) -> str:
    return matrix.name.rsplit(".", 1)[-1]


def _files(checkpoint: Checkpoint, plan: ExportPlan) -> Iterator[tuple[str, int]]:
    num_products = sum(1 for _ in plan.products())
    yield "model.onnx.data", plan.num_bytes
    yield "model.onnx (about)", num_products * BYTES_PER_PRODUCT
    for name, path in checkpoint.tokenizer_files():
        yield name, path.stat().st_size


def _num_proof_tokens(plan: ExportPlan) -> int:
    is_large = plan.num_parameters > LARGE_PROOF
    return (LARGE_TEXT if is_large else TEXT) + NUM_ROWS * (24 if is_large else 48)


def _num_calibration_tokens(plan: ExportPlan) -> int:
    is_large = plan.architecture.num_layer_weights > LARGE_MODEL
    return (MAX_TOKENS_OF_LARGE if is_large else MAX_TOKENS) + MAX_DOCUMENT


def _peak(plan: ExportPlan, *, calibrates: bool, verify: bool) -> float:
    largest = 4 * max(matrix.num_rows * matrix.num_columns for layer in plan.layers for matrix in layer.matrices)
    widest = 4 * max(matrix.num_rows for layer in plan.layers for matrix in layer.matrices)
    writing = 12 * min(4 * CHUNK_ELEMENTS, largest)  # a chunk and its copies
    calibrating = 2 * largest + LIVE_ARRAYS * widest * _num_calibration_tokens(plan) if calibrates else 0
    proving = 0.0
    if verify:
        logits = 4 * plan.architecture.vocab_size * _num_proof_tokens(plan)
        proving = SESSION_COPIES * plan.num_bytes + LOGIT_COPIES * logits + 2 * largest
    return PROCESS_BYTES + max(writing, calibrating, proving)


def _seconds(plan: ExportPlan, speed: Speed, *, calibrates: bool, verify: bool) -> float:
    weights = plan.num_parameters
    seconds = PROCESS_SECONDS + weights / speed.quantized + weights / speed.read

    def one_pass(num_tokens: int) -> float:
        return weights / speed.read + weights * num_tokens / speed.multiplied

    if calibrates:
        seconds += one_pass(_num_calibration_tokens(plan))
    if verify:
        num_passes = 2 if plan.precision in ("int8", "int4") and not plan.is_paged else 1
        seconds += (num_passes + 1) * one_pass(_num_proof_tokens(plan))  # and the graph's own
    return seconds
