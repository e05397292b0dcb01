"""The checkpoints that transformers made and the logits it computed for them; see `make_family_checkpoints`."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ortserve.export.sources.checkpoint import RANDOM_WEIGHTS
from tests.export.checkpoints import write_json

FOLDER = Path(__file__).parent / "families"
NAMES = tuple(sorted(path.name for path in FOLDER.iterdir() if path.is_dir()))
MAX_CONTEXT = 48  # within what Phi-4-mini's divisors cover
BLOCK_SIZE = 16  # int4: the matrices are tiny
every_family = pytest.mark.parametrize("family", NAMES)


@dataclass(frozen=True, slots=True)
class Expected:
    """What transformers computed: logits `[length, vocab]` after every token of every sequence."""

    sequences: tuple[list[int], ...]
    logits: tuple[NDArray[np.float32], ...]


def expected_logits(family: str) -> Expected:
    stored = load_file(FOLDER / family / "expected.safetensors")
    lengths = sorted((int(name.split(".")[1]) for name in stored if name.startswith("tokens")), reverse=True)
    return Expected(
        sequences=tuple(stored[f"tokens.{length}"].tolist() for length in lengths),
        logits=tuple(stored[f"logits.{length}"] for length in lengths),
    )


def copy_family(family: str, folder: Path, **fields: object) -> Path:
    """A copy whose config.json also says that the weights are random; `fields` override others, None deletes."""
    shutil.copytree(FOLDER / family, folder)
    config = {**json.loads((folder / "config.json").read_text()), RANDOM_WEIGHTS: True, **fields}
    write_json(folder / "config.json", {key: value for key, value in config.items() if value is not None})
    return folder


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Within float32 rounding of a few layers; one wrong constant is far outside."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * max(1.0, float(np.abs(expected).max())))
