"""What a LoRA adapter adds to a product, for the reference: two thin products beside the matrix, nothing merged.

Reads the adapter's files on its own and shares no code with `adapter`, which merges them for the graph.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ortserve.export.sources.safetensors_file import read_header

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SidePaths:
    """The adapter of one folder."""

    folder: Path

    def add(self, name: str, value: Floats, rows: slice) -> Floats | float:
        """`(value @ A.T) @ B.T * scale` for the given rows of the matrix called `name`; 0 where it has no adapter."""
        module = name[: -len(".weight")]
        stored = read_header(self.folder / "adapter_model.safetensors")
        prefix = f"base_model.model.{module}.lora_"
        if f"{prefix}A.weight" not in stored:
            return 0.0
        down, up = (stored[f"{prefix}{half}.weight"].read().astype(np.float64) for half in "AB")
        thin = value.astype(np.float64) @ down.T
        side: Floats = (thin @ up[rows].T * self._scale(module, len(down))).astype(np.float32)
        return side

    def _scale(self, module: str, rank: int) -> float:
        config = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        alphas = [
            value
            for pattern, value in (config.get("alpha_pattern") or {}).items()
            if f".{module}".endswith(f".{pattern.lstrip('^').rstrip('$')}")
        ]
        alpha = float([*alphas, config["lora_alpha"]][0])
        divisor = rank**0.5 if config.get("use_rslora") else rank
        return float(alpha / divisor)
