"""Which parts of an unfinished data file are complete, line by line, so that a rerun need not compute them again.

Knows names and bytes. A line is written after its bytes; whatever of them does not have the line's digest is redone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import onnx

PIECE = 1 << 22  # bytes read at a time


class Unit(msgspec.Struct, frozen=True):
    """Tensors that were written together: bytes `[start, end)` of the file, and their entries in the graph."""

    name: str
    start: int
    end: int
    sha256: str
    entries: tuple[bytes, ...]


class Journal:
    """The units of one data file in order. A journal of another plan counts as empty."""

    def __init__(self, path: Path, plan: str) -> None:
        self._path = path
        self._units, is_whole = _read(path, plan)
        self._is_new = not self._units
        self._plan = plan
        self._next = 0
        if not is_whole:
            self._rewrite(self._units)

    @property
    def num_units(self) -> int:
        """Found complete when it was opened, and added since."""
        return len(self._units)

    def take(self, name: str, start: int, file: BinaryIO, update: Callable[[bytes], None]) -> list[onnx.TensorProto]:
        """The entries of the next unit, if it is that one and its bytes are in the file; else nothing, from now on.

        `update` is called with the unit's bytes.
        """
        if self._next >= len(self._units):
            return []
        unit = self._units[self._next]
        if (unit.name, unit.start) != (name, start) or not _has(file, unit):
            self._rewrite(self._units[: self._next])  # what follows is another file
            return []
        self._next += 1
        for piece in _pieces(file, unit):
            update(piece)
        return [onnx.TensorProto.FromString(entry) for entry in unit.entries]

    def add(self, unit: Unit) -> None:
        """Call it when the bytes are in the file."""
        mode = "wb" if self._is_new else "ab"
        with self._path.open(mode) as file:
            if self._is_new:
                file.write(msgspec.json.encode(self._plan) + b"\n")
            file.write(msgspec.json.encode(unit) + b"\n")
        self._is_new = False
        self._units.append(unit)
        self._next = len(self._units)

    def _rewrite(self, units: list[Unit]) -> None:
        """Keep these and no others."""
        place = self._next
        self._units, self._is_new = [], True
        self._path.unlink(missing_ok=True)
        for unit in units:
            self.add(unit)
        self._next = min(place, len(units))


def _read(path: Path, plan: str) -> tuple[list[Unit], bool]:
    """The units, and whether the file ends with the last of them: a line may have been cut off."""
    units: list[Unit] = []
    try:
        lines = path.read_bytes().splitlines()
        if not lines or msgspec.json.decode(lines[0], type=str) != plan:
            return [], True
        for line in lines[1:]:
            units.append(msgspec.json.decode(line, type=Unit))
    except (OSError, msgspec.MsgspecError):
        return units, False
    return units, True


def _has(file: BinaryIO, unit: Unit) -> bool:
    digest = hashlib.sha256()
    for piece in _pieces(file, unit):
        digest.update(piece)
    return digest.hexdigest() == unit.sha256


def _pieces(file: BinaryIO, unit: Unit) -> Iterator[bytes]:
    file.seek(unit.start)
    left = unit.end - unit.start
    while left > 0 and (piece := file.read(min(PIECE, left))):
        left -= len(piece)
        yield piece
