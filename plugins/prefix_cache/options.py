"""The options of `prefix` as they are written, and the numbers they become. Knows no cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_NAMES = ("path", "max_bytes", "pinned_share")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Options:
    """`path` switches the tier on disk on."""

    path: Path | None  # a folder; processes may share it
    max_bytes: int  # of files in that folder
    pinned_share: float  # of the blocks in memory, that lifetimes may keep


def read_options(written: Mapping[str, str]) -> Options:
    """Raises `ValueError`, in one line, for an unknown name or an unreadable value."""
    for name in written:
        if name not in _NAMES:
            raise ValueError(f"the prompt cache prefix has no option {name}: it knows {', '.join(_NAMES)}")
    path = written.get("path")
    return Options(
        path=Path(path).expanduser() if path else None,
        max_bytes=_read_bytes(written.get("max_bytes", "16G")),
        pinned_share=_read_share(written.get("pinned_share", "0.5")),
    )


def _read_bytes(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in _UNITS else (text, "")
    try:
        value = int(float(number) * _UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        value = 0
    if value <= 0:
        raise ValueError(f"max_bytes of the prompt cache is {text!r}: give bytes, or a number with K, M, G or T")
    return value


def _read_share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"pinned_share of the prompt cache is {text!r}: give a number from 0 to 1")
    return value
