"""Models whose positions rotate by how long the sequence is, and the logits transformers computed for several lengths.

Made by `make_family_checkpoints`: longrope at, just beyond and far beyond its original context, dynamic scaling at the
lengths that requests are sized by.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.export.family_checkpoints import FOLDER, copy_family

DESCRIBED: dict[str, dict[str, Any]] = json.loads((FOLDER / "regimes.json").read_text())
BOUNDS = {"phi4_mini": (48, 96), "llama": (24, 48, 96)}  # of the regimes, by checkpoint
every_model = pytest.mark.parametrize("name", DESCRIBED)


def copy_model(name: str, folder: Path, **fields: object) -> Path:
    """Its checkpoint, whose configuration says that the weights are random."""
    return copy_family(name, folder, **DESCRIBED[name]["fields"], **fields)


def expected_at(name: str) -> dict[int, tuple[list[int], NDArray[np.float32]]]:
    """Tokens and logits `[length, vocab]` by length."""
    stored = load_file(FOLDER / "regimes.safetensors")
    return {
        int(length): (stored[f"{name}.tokens.{length}"].tolist(), stored[f"{name}.logits.{length}"])
        for length in DESCRIBED[name]["lengths"]
    }
