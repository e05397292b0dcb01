"""A hidden folder in which an export is made, and which an interrupt leaves for the same command to go on with.

Knows files and locks, nothing of what is made. Errors and a full disk leave nothing behind; so does success.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ortserve.export.errors import ExportError
from ortserve.export.folder.new_folder import check_replaceable, partial_folder, take_name

LOCK, MODEL, KEPT = "lock", "model", "kept"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """`model` becomes the destination; what lies in `kept` is for a rerun alone."""

    model: Path
    kept: Path


@contextmanager
def unfinished_folder(destination: Path, *, key: str, force: bool, marker: str) -> Iterator[Unfinished]:
    """The folder of that key beside the destination, with what an interrupted run of the same key has left in it.

    Those of other keys are removed. Another process that makes the same at the same time works in a folder of its own.
    Raises `ExportError` as `new_folder` does.
    """
    destination = destination.resolve()
    if destination.exists():
        check_replaceable(destination, force=force, marker=marker)
    wanted = _named(destination, key)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(destination, keep=wanted)
        folder, lock = _claim(wanted, destination)
    except OSError as error:
        raise ExportError(
            f"{destination.parent} cannot be written ({error.strerror}): choose another destination"
        ) from None
    is_kept = False
    try:
        yield Unfinished(folder / MODEL, folder / KEPT)
        take_name(folder / MODEL, destination)
    except OSError as error:
        raise ExportError(
            f"{destination} cannot be written ({error.strerror or error}): free space on the disk, or choose another"
        ) from error
    except KeyboardInterrupt:
        is_kept = any((folder / KEPT).iterdir())
        if is_kept:
            sys.stderr.write(f"\nstopped: the same command goes on from {folder}, which may be deleted\n")
        raise
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _named(destination: Path, key: str) -> Path:
    return destination.with_name(f".{destination.name}.unfinished-{key[:16]}")


def _claim(wanted: Path, destination: Path) -> tuple[Path, BinaryIO]:
    for folder in (wanted, partial_folder(destination)):
        lock = _lock(folder)
        if lock is not None:
            for name in (MODEL, KEPT):
                (folder / name).mkdir(exist_ok=True)
            return folder, lock
    raise AssertionError("a fresh name is nobody else's")


def _lock(folder: Path) -> BinaryIO | None:
    """None when another process holds it, or has just removed the folder."""
    folder.mkdir(exist_ok=True)
    lock = (folder / LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    if not (folder / LOCK).exists():
        lock.close()
        return None
    return lock


def _remove_stale(destination: Path, *, keep: Path) -> None:
    """What interrupted exports of other sources, options or versions have left."""
    for left in destination.parent.glob(f".{destination.name}.unfinished-*"):
        if left == keep:
            continue
        lock = _lock(left)
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            lock.close()
