"""Which block files there are: an index per salt, kept true by listing folders, and what goes when they are too many.

Knows no threads and no tokens. All methods belong to the disk's thread, except `Shelf.records`, which others may read.
Layout: `<folder>/<model>/<root>/<key>-<parent>.kv`, where all four are hexadecimal.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ortserve.plugins.prefix_cache.blockfile import TEMPORARY, file_name, parse_file_name

_ABANDONED_S = 3600.0  # a temporary file that nobody can still be writing
_KEEP_SHARE = 0.95  # of the bound, when it is exceeded: not every write shall remove something


@dataclass(slots=True)
class Record:
    """One block file."""

    parent: bytes
    num_bytes: int
    used_at: float  # seconds since 1970: its mtime


@dataclass(slots=True, eq=False)
class Shelf:
    """The files of one salt of one model. Forgetting a salt replaces its shelf: what joins the old one is lost."""

    folder: str
    records: dict[bytes, Record] = field(default_factory=dict)  # by key
    ignored: set[bytes] = field(default_factory=set)  # not sound, and not ours to remove
    listed_at_ns: int = 0  # the folder's mtime when it was last listed
    is_being_emptied: bool = False  # its folder has files of a forgotten shelf: they must not be listed again


class Shelves:
    """All shelves below one folder, also those of other models: the size bound is for all of them together."""

    def __init__(self, folder: Path, max_bytes: int, ours: dict[str, Shelf]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._ours = ours  # shared with lookups, which add shelves, too
        self._shelves: dict[str, Shelf] = {}
        self.num_bytes = 0
        self.num_evicted = 0

    def shelf(self, folder: str) -> Shelf:
        """The shelf of a folder, which need not exist."""
        found = self._shelves.get(folder)
        if found is None:
            found = self._shelves[folder] = self._ours.setdefault(folder, Shelf(folder))
        return found

    def all(self) -> list[Shelf]:
        """Every shelf known."""
        return list(self._shelves.values())

    def add(self, shelf: Shelf, key: bytes, record: Record) -> None:
        """A file has been written or found."""
        if self._shelves.get(shelf.folder) is not shelf:
            return
        self.drop(shelf, key)
        shelf.records[key] = record
        self.num_bytes += record.num_bytes

    def drop(self, shelf: Shelf, key: bytes) -> None:
        """A file is gone."""
        record = shelf.records.pop(key, None)
        if record is not None and self._shelves.get(shelf.folder) is shelf:
            self.num_bytes -= record.num_bytes

    def remove(self, shelf: Shelf, key: bytes) -> None:
        """Delete a file. Raises `OSError` if that is not possible."""
        record = shelf.records.get(key)
        if record is not None:
            _path(shelf, key, record).unlink(missing_ok=True)
            self.drop(shelf, key)

    def touch(self, shelf: Shelf, key: bytes, now: float) -> None:
        """A file has been used. Raises `OSError`."""
        record = shelf.records.get(key)
        if record is not None:
            record.used_at = now
            os.utime(_path(shelf, key, record), (now, now))

    def empty(self, shelf: Shelf) -> None:
        """`shelf` has replaced a forgotten one: delete the files of that. Raises `OSError`."""
        old = self._shelves.get(shelf.folder)
        if old is not None and old is not shelf:
            self.num_bytes -= sum(record.num_bytes for record in old.records.values())
        self._shelves[shelf.folder] = shelf
        for entry in _entries(shelf.folder):
            if parse_file_name(entry.name) is not None or entry.name.endswith(TEMPORARY):
                Path(entry.path).unlink(missing_ok=True)
        shelf.is_being_emptied = False

    def empty_unlisted(self, prefix: str) -> None:
        """Delete what other processes have written below a model's folder since it was listed. Raises `OSError`."""
        for entry in _entries(prefix):
            folder = prefix + entry.name
            if folder not in self._shelves and entry.is_dir(follow_symlinks=False):
                self.empty(self.shelf(folder))

    def scan(self, now: float) -> None:
        """List the folders that have changed since they were last listed. Raises `OSError`."""
        visited: set[str] = set()
        for model in _entries(str(self._folder)):
            if not model.is_dir(follow_symlinks=False):
                continue
            for root in _entries(model.path):
                if root.is_dir(follow_symlinks=False):
                    visited.add(root.path)
                    self._list(self.shelf(root.path), root.stat().st_mtime_ns, now)
        for shelf in self.all():
            if shelf.folder not in visited:
                for key in list(shelf.records):
                    self.drop(shelf, key)

    def _list(self, shelf: Shelf, changed_at_ns: int, now: float) -> None:
        if changed_at_ns == shelf.listed_at_ns or shelf.is_being_emptied:
            return
        shelf.listed_at_ns = changed_at_ns
        missing = set(shelf.records)
        for entry in _entries(shelf.folder):
            names = parse_file_name(entry.name)
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # another process has removed it
            if names is not None and names[0] not in shelf.ignored:
                missing.discard(names[0])
                self.add(shelf, names[0], Record(names[1], status.st_size, status.st_mtime))
            elif entry.name.endswith(TEMPORARY) and abs(now - status.st_mtime) > _ABANDONED_S:
                Path(entry.path).unlink(missing_ok=True)
        for key in missing:
            self.drop(shelf, key)

    def enforce(self, now: float) -> None:
        """Remove what was used longest ago until the bound holds, children before parents. Raises `OSError`.

        Whatever lies in the future, because a clock has jumped, counts as used now.
        """
        if self.num_bytes <= self._max_bytes:
            return
        owners = {(id(shelf), key): shelf for shelf in self.all() for key in shelf.records}
        num_children = Counter((id(shelf), record.parent) for shelf in self.all() for record in shelf.records.values())
        heap = [
            (min(shelf.records[key].used_at, now), key, name)
            for name, shelf in owners.items()
            if num_children[name] == 0 and (key := name[1])
        ]
        heapq.heapify(heap)
        while heap and self.num_bytes > self._max_bytes * _KEEP_SHARE:
            used_at, key, name = heapq.heappop(heap)
            shelf = owners[name]
            record = shelf.records[key]
            seen_at = min(_used_at(_path(shelf, key, record), used_at), now)
            if seen_at > used_at:  # another process has used it
                record.used_at = seen_at
                heapq.heappush(heap, (seen_at, key, name))
                continue
            self.remove(shelf, key)
            self.num_evicted += 1
            above = (id(shelf), record.parent)
            num_children[above] -= 1
            if num_children[above] == 0 and above in owners:
                heapq.heappush(heap, (min(shelf.records[above[1]].used_at, now), above[1], above))


def _path(shelf: Shelf, key: bytes, record: Record) -> Path:
    return Path(shelf.folder) / file_name(key, record.parent)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _used_at(path: Path, otherwise: float) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return otherwise
