"""Asks optimum, in its own process and environment, for a graph and the reference's numbers. Knows no graph."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.export.encoders.environment import default_environments, optimum_python
from ortserve.export.encoders.transformers4 import readable_copy
from ortserve.export.errors import ExportError
from ortserve.runtime.encoder_manifest import EncoderTask

WORKER = Path(__file__).with_name("worker.py")


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
    python = optimum_python(default_environments(), progress=progress)
    readable = readable_copy(checkpoint, folder / "checkpoint")
    request = folder / "request.json"
    out = folder / "optimum"
    asked = {"checkpoint": str(readable), "folder": str(out), "task": task, "texts": [*texts], "pairs": [*pairs]}
    request.write_text(json.dumps(asked), encoding="utf-8")
    done = subprocess.run([str(python), str(WORKER), str(request)], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0 or not (out / "done.json").exists():
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        raise ExportError(f"optimum cannot export {checkpoint.name} ({reason.strip()[:300]})")
    return read_optimum_export(out)


def read_optimum_export(folder: Path) -> OptimumExport:
    """What the worker wrote into `folder`."""
    facts = json.loads((folder / "done.json").read_text(encoding="utf-8"))
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
