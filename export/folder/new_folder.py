"""Makes a folder appear complete or not at all. Knows nothing of what is in it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ortserve.export.errors import ExportError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all. Raises `ExportError` for a full disk or missing permissions."""
    written = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        written.write_bytes(content)
        written.rename(path)
    except OSError as error:
        raise ExportError(
            f"{path} cannot be written ({error.strerror or error}): free space on the disk, or check permissions"
        ) from error
    finally:
        written.unlink(missing_ok=True)


@contextmanager
def new_folder(destination: Path, *, force: bool, marker: str) -> Iterator[Path]:
    """A hidden sibling that takes the destination's name on success and vanishes on any error or interrupt.

    Raises `ExportError` when the destination exists without `force`, when `force` would replace something that
    does not hold a file called `marker`, and for a full disk or missing permissions.
    """
    destination = destination.resolve()
    if destination.exists():
        check_replaceable(destination, force=force, marker=marker)
    partial = partial_folder(destination)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ExportError(
            f"{partial.parent} cannot be written ({error.strerror}): choose another destination"
        ) from None
    try:
        yield partial
        take_name(partial, destination)
    except OSError as error:
        raise ExportError(
            f"{destination} cannot be written ({error.strerror or error}): free space on the disk, or choose another"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_folder(destination: Path) -> Path:
    """A fresh name beside the destination; see `remove_partial_folders`."""
    return destination.with_name(f".{destination.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")


def remove_partial_folders(destination: Path) -> None:
    """Delete what a killed process left behind. Only for a caller that knows nobody else is writing."""
    for left in destination.parent.glob(f".{destination.name}.partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def check_replaceable(destination: Path, *, force: bool, marker: str) -> None:
    """Raise `ExportError` unless an existing destination may be replaced; see `new_folder`."""
    if not force:
        raise ExportError(f"{destination} exists: choose another destination, or replace it with --force")
    if not destination.is_dir():
        raise ExportError(f"{destination} is no folder: choose another destination")
    if not (destination / marker).exists() and any(destination.iterdir()):
        raise ExportError(
            f"{destination} holds files but no {marker}, so --force does not replace it: choose another destination"
        )


def take_name(partial: Path, destination: Path) -> None:
    """Rename, putting a replaced folder back when that fails: at every moment one of the two is complete."""
    if not destination.exists():
        partial.rename(destination)
        return
    replaced = partial_folder(destination)
    destination.rename(replaced)
    try:
        partial.rename(destination)
    except BaseException:
        replaced.rename(destination)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
