"""Asks optimum, in its own process and environment, for a graph and the reference's numbers. Knows no graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.export.optimum.process import read_done, run_worker
from ortserve.runtime.encoders.manifest import EncoderTask


@dataclass(frozen=True, slots=True)
class DenseModule:
    """A linear layer after pooling."""

    weight: NDArray[np.float32]  # [outputs, inputs]
    bias: NDArray[np.float32] | None
    activation: str  # torch's class name


@dataclass(frozen=True, slots=True)
class OptimumExport:
    """What came back."""

    graph: Path
    reference: NDArray[np.float32]  # [texts, numbers], or [pairs, 1]
    dense: tuple[DenseModule, ...]
    libraries: Mapping[str, str]  # versions


def export_through_optimum(
    checkpoint: Path,
    folder: Path,
    task: EncoderTask,
    *,
    texts: Sequence[str] = (),
    pairs: Sequence[tuple[str, str]] = (),
    progress: bool = True,
) -> OptimumExport:
    """Export `checkpoint` into `folder`. Raises `ExportError` with the last line of what went wrong."""
    out = folder / "optimum"
    run_worker(checkpoint, out, task, texts=[*texts], pairs=[*pairs], progress=progress)
    return read_optimum_export(out)


def read_optimum_export(folder: Path) -> OptimumExport:
    """What the worker wrote into `folder`."""
    facts = read_done(folder)
    reference = np.load(folder / "reference.npy")
    return OptimumExport(folder / "model.onnx", reference, _dense(folder, facts), facts["libraries"])


def _dense(out: Path, facts: Mapping[str, Any]) -> tuple[DenseModule, ...]:
    modules = [module for module in facts["modules"] if module["type"] == "Dense"]
    if not modules:
        return ()
    with np.load(out / "dense.npz") as stored:
        return tuple(
            DenseModule(
                stored[f"{module['weights']}.weight"].astype(np.float32),
                stored[bias].astype(np.float32) if (bias := f"{module['weights']}.bias") in stored else None,
                module["activation"],
            )
            for module in modules
        )
