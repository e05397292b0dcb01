"""Keeps what was measured on calibration text, so that a rerun need not measure again. Knows recipes, no graph."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture, Linear
from ortserve.export.recipes.calibrate import places
from ortserve.export.recipes.digest import digest_of
from ortserve.export.recipes.recipe import Calibration, InputOptions, InputRecipe

INDEX = "index"


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Appears by a rename."""
    arrays: dict[str, NDArray[Any]] = {}
    options = []
    for number, (linear, found) in enumerate(calibration.options.items()):
        kinds = {}
        for kind in (field.name for field in fields(InputOptions)):
            recipe = getattr(found, kind)
            if recipe is not None:
                kinds[kind] = _plain(recipe, f"{number}.{kind}", arrays)
        options.append({"linear": digest_of(linear), "kinds": kinds})
    index = {"options": options, "num_tokens": calibration.num_tokens, "source": calibration.source}
    arrays[INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    written = path.with_suffix(".new")
    with written.open("wb") as file:
        savez: Any = np.savez  # its stub takes names of arrays for its own options
        savez(file, **arrays)
    written.rename(path)


def load_calibration(path: Path, architecture: Architecture) -> Calibration | None:
    """None where there is none, or none that can be read and belongs to that architecture."""
    linears = {digest_of(linear): linear for linear in _linears(architecture)}
    try:
        with np.load(path, allow_pickle=False) as stored:
            index = json.loads(stored[INDEX].tobytes())
            options = {
                linears[one["linear"]]: InputOptions(
                    **{kind: _recipe(plain, f"{number}.{kind}", stored) for kind, plain in one["kinds"].items()}
                )
                for number, one in enumerate(index["options"])
            }
            return Calibration(options, index["num_tokens"], index["source"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _linears(architecture: Architecture) -> Iterator[Linear]:
    for place in places(architecture):
        yield from place.linears


def _plain(recipe: InputRecipe, name: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    values = {field.name: getattr(recipe, field.name) for field in fields(InputRecipe)}
    for key in [key for key, value in values.items() if isinstance(value, np.ndarray)]:
        arrays[f"{name}.{key}"] = values.pop(key)
    return {key: float(value) if isinstance(value, np.floating) else value for key, value in values.items()}


def _recipe(plain: dict[str, Any], name: str, stored: Any) -> InputRecipe:
    own = {key[len(name) + 1 :]: stored[key] for key in stored.files if key.startswith(f"{name}.")}
    return InputRecipe(**plain, **own)
