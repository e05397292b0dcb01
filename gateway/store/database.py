"""One SQLite database used by one thread of its own, off the event loop. Knows no table.

A folder belongs to one server at a time. A killed process leaves at most its unfinished transaction behind, which
SQLite's write-ahead log undoes; a file that is damaged all the same is set aside, never repaired and never deleted.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ortserve.gateway.errors import ApiError, unavailable
from ortserve.gateway.logs import log
from ortserve.runtime.errors import OrtserveError

FILE_NAME = "state.sqlite3"
LOCK_NAME = "lock"
APPLICATION_ID = 0x6F727473  # "orts"
VERSION = 1
MAX_PENDING = 1024
DAMAGES = ("malformed", "not a database", "disk image", "corrupt")

Result = TypeVar("Result")


class StateError(OrtserveError):
    """The state folder cannot be used; the message says what to do."""


class Database:
    """Runs functions as transactions, one after the other. `folder` None keeps everything in memory."""

    def __init__(self, folder: Path | None, schema: str) -> None:
        """Open or create. Raises `StateError`."""
        self._schema = schema
        self._unlock: Callable[[], object] = lambda: None
        if folder is not None:
            # Also when nobody closes this: the folder is free as soon as nothing can write to it.
            self._unlock = weakref.finalize(self, os.close, _locked(folder))
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ortserve-state")
        self._num_pending = 0
        self._guard = threading.Lock()
        try:
            self._connection = self._executor.submit(self._open, folder).result()
        except BaseException:
            self._executor.shutdown()
            self._unlock()
            raise

    async def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """The result of one transaction; whatever `work` raises undoes all of it.

        Raises `ApiError` (503) when the disk refuses, or when too much is waiting.
        """
        with self._guard:
            if self._num_pending >= MAX_PENDING:
                raise ApiError(unavailable("Too many requests to the state store are waiting.", retry_after_s=2.0))
            self._num_pending += 1
        future = self._executor.submit(self._transact, work)
        future.add_done_callback(self._release)
        return await asyncio.wrap_future(future)

    def run_now(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """The same for callers without an event loop to keep free, such as the start of a server."""
        return self._executor.submit(self._transact, work).result()

    def close(self) -> None:
        """Finish what waits, write everything into the one file, let others use the folder. Safe to call again."""
        if self._connection is not None:
            self._executor.submit(self._connection.close).result()
            self._connection = None
        self._executor.shutdown()
        self._unlock()

    def _transact(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        connection = self._connection
        assert connection is not None, "the database is closed"
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                return work(connection)
        except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            log().error("state_store_failed", error=str(error))
            raise ApiError(unavailable(f"The state store cannot be used: {error}.")) from error

    def _release(self, _: object) -> None:
        with self._guard:
            self._num_pending -= 1

    def _open(self, folder: Path | None) -> sqlite3.Connection | None:
        if folder is None:
            return self._prepared(sqlite3.connect(":memory:", isolation_level=None))
        path = folder / FILE_NAME
        try:
            return self._connect(path)
        except sqlite3.DatabaseError as error:
            if not any(word in str(error) for word in DAMAGES):
                message = f"{path} cannot be opened ({error}): check the disk, or choose another folder"
                raise StateError(message) from None
            aside = set_aside(path)
            log().error("state_set_aside", path=str(path), moved_to=str(aside), error=str(error))
        try:
            return self._connect(path)
        except sqlite3.DatabaseError as error:
            raise StateError(f"{path} cannot be created ({error}): check the disk, or choose another folder") from None

    def _connect(self, path: Path) -> sqlite3.Connection:
        is_new = not path.exists() or path.stat().st_size == 0
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            path.chmod(0o600)
            if not is_new:
                self._check(connection, path)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            return self._prepared(connection)
        except BaseException:
            connection.close()
            raise

    def _prepared(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        for pragma in ("foreign_keys = ON", "secure_delete = ON", "synchronous = NORMAL", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        if _pragma(connection, "user_version") == 0:
            with connection:
                connection.executescript(f"BEGIN IMMEDIATE; {self._schema}")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
        return connection

    def _check(self, connection: sqlite3.Connection, path: Path) -> None:
        result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if result != "ok":
            raise sqlite3.DatabaseError(f"corrupt: {result}")
        application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
        if application != APPLICATION_ID and (application, version) != (0, 0):
            raise StateError(f"{path} belongs to another program: choose another folder")
        if version > VERSION:
            raise StateError(f"{path} was written by a newer version of this program: choose another folder")


def set_aside(path: Path) -> Path:
    """Move a damaged database with its log out of the way; the new name."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    target = path.with_name(f"{path.name}.damaged-{stamp}-{os.getpid()}")
    for suffix in ("-wal", "-shm", ""):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(target.with_name(target.name + suffix))
    return target


def _locked(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"{folder} cannot keep the server's state ({error.strerror}): choose another folder") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        message = f"{folder} is in use by another server: stop it, or give each server a folder of its own"
        raise StateError(message) from None
    return descriptor


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
