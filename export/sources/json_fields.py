"""Typed reading of fields from a checkpoint's JSON files. Knows no field names and no defaults of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ortserve.export.errors import ExportError

JsonObject = Mapping[str, Any]


def read_json(path: Path) -> JsonObject:
    """The object in `path`. Raises `ExportError` when it cannot be read or is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}): check the checkpoint folder") from None
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not valid JSON ({error}): download the file again") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path} holds a {type(value).__name__}, expected a JSON object: download the file again")
    return value


def read_optional_json(path: Path) -> JsonObject:
    """Like `read_json`; a file that does not exist is an empty object."""
    return read_json(path) if path.exists() else {}


def integer(fields: JsonObject, key: str, default: int | None = None) -> int:
    """A positive whole number; null counts as absent. Raises `ExportError` when absent without default, or wrong."""
    value = fields.get(key)
    if value is None:
        if default is None:
            raise ExportError(f"config.json has no {key}: this is not a complete checkpoint of the family it names")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ExportError(f"config.json: {key} is {value!r}, expected a positive whole number")
    return value


def number(fields: JsonObject, key: str, default: float | None = None) -> float:
    """A positive number; null counts as absent. Raises `ExportError` when absent without default, or wrong."""
    value = fields.get(key)
    if value is None:
        if default is None:
            raise ExportError(f"config.json has no {key}: this is not a complete checkpoint of the family it names")
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ExportError(f"config.json: {key} is {value!r}, expected a positive number")
    return float(value)


def flag(fields: JsonObject, key: str, default: bool) -> bool:
    """true or false; null counts as absent. Raises `ExportError` for anything else."""
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ExportError(f"config.json: {key} is {value!r}, expected true or false")
    return value
