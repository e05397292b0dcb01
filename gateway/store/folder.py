"""Where the bytes of files are: in a folder that stays, or in one that goes with the process. Knows no file's name."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

PREFIX = "ortserve-uploads-"


class Folder(Protocol):
    """A place for files."""

    @property
    def path(self) -> Path:
        """The folder, made if it is not there yet."""
        ...

    def entries(self) -> list[Path]:
        """What is in it; makes nothing."""
        ...

    def close(self) -> None:
        """Nothing is read or written any more. Safe to call again."""
        ...


class LastingFolder:
    """One that outlives its server."""

    def __init__(self, path: Path) -> None:
        """Make it if it is not there."""
        path.mkdir(mode=0o700, exist_ok=True)
        self.path = path

    def entries(self) -> list[Path]:
        """What is in it."""
        return list(self.path.iterdir())

    def close(self) -> None:
        """It stays."""


class PassingFolder:
    """One in the system's folder for temporary files, made when it is first asked for.

    It goes with `close`, with whoever holds this, or with the process. A process that is killed cannot remove it: the
    next one does, which finds that nobody holds its lock.
    """

    def __init__(self) -> None:
        """Remove what killed processes of this user have left."""
        self._guard = threading.Lock()
        self._path: Path | None = None
        self._remove: Callable[[], object] = lambda: None
        _remove_abandoned()

    @property
    def path(self) -> Path:
        """The folder, made now if it is not there yet."""
        with self._guard:
            if self._path is None:
                self._path, descriptor = _make()
                self._remove = weakref.finalize(self, _remove, self._path, descriptor)
            return self._path

    def entries(self) -> list[Path]:
        """What is in it."""
        return [] if self._path is None else list(self._path.iterdir())

    def close(self) -> None:
        """Remove it with all that is in it."""
        self._remove()


def _make() -> tuple[Path, int]:
    """A new folder and its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Another process that starts at this moment may have taken it for an abandoned one.
        with contextlib.suppress(OSError):
            descriptor = _opened(path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return path, descriptor
            os.close(descriptor)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with _lock_of_nobody(path) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock_of_nobody(path: Path) -> Iterator[bool]:
    """Whether it is this user's and no process holds its lock, which none can take meanwhile."""
    try:
        descriptor = _opened(path)
    except OSError:  # it has gone, is no folder, or is another user's
        yield False
        return
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
