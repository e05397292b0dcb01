"""From a checkpoint and the options of an export to the first plan. Reads headers only, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ortserve.export.architecture import Architecture
from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.recipes.plan import ExportPlan, plan_export
from ortserve.export.recipes.precisions import (
    DEVICE_PRECISIONS,
    FLOAT_PRECISIONS,
    Device,
    Forms,
    KvPrecision,
    default_block_size,
)
from ortserve.export.recipes.takeover import REQUANTIZE, choose_precision, find_block_formats
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.templates import check_templates


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a user chooses; None is the default of the device or the model."""

    precision: str | None = None
    device: Device = "cpu"
    block_size: int | None = None
    max_context: int | None = None
    activations: str = "calibrated"
    calibration_text: Path | None = None
    requantize: bool = False
    kv: KvPrecision = "float"
    forms: Forms | None = None  # not a user's choice: of operators that compute the same, for measuring


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan without calibration, and how to make another with it."""

    architecture: Architecture
    plan: ExportPlan
    plan_with: Callable[..., ExportPlan]  # calibration and caution, as `plan_export` takes them
    calibrates: bool
    block_size: int


def first_plan(checkpoint: Checkpoint, options: ExportOptions) -> Planned:
    """Raises `ExportError` for an unusable checkpoint, and for options that do not fit it or each other."""
    architecture = read_architecture(checkpoint)
    check_templates(checkpoint)
    device = options.device
    default = DEVICE_PRECISIONS[device][0]
    precision = choose_precision(checkpoint, options.precision, default, requantize=options.requantize)
    takes_over = checkpoint.packing is not None and not options.requantize
    if takes_over and checkpoint.adapter is not None:
        raise ExportError(f"--adapter changes matrices that are quantized already: {REQUANTIZE}")
    if takes_over and options.calibration_text is not None and options.kv == "float":
        raise ExportError("--calibration: quantized matrices are taken over as they are; leave it out, or requantize")
    plan_with = partial(
        plan_export,
        architecture,
        precision=precision,
        device=device,
        block_size=options.block_size,
        max_context=options.max_context,
        taken=find_block_formats(checkpoint, architecture) if takes_over else None,
        kv=options.kv,
        forms=options.forms,
    )
    plan = plan_with()
    calibrates = options.activations == "calibrated" and plan.precision not in FLOAT_PRECISIONS and not takes_over
    return Planned(architecture, plan, plan_with, calibrates, options.block_size or default_block_size(device))
