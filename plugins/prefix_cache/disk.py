"""The tier on disk: one thread that reads, writes, lists and removes block files. Knows no tree and no hits.

The engine's thread puts jobs into queues and takes finished ones out; it never touches a file itself. Reads go first.
What the system refuses is said once and counted; it costs the cache, never a request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ortserve.plugins.api import BlockId, PluginContext, TierStats
from ortserve.plugins.prefix_cache.blockfile import BadBlockError, BlockName, model_name, read_block, write_block
from ortserve.plugins.prefix_cache.shelves import Record, Shelf, Shelves

_FIRST_LISTING_S = 1.0  # how long the start waits for the index; lookups before it is complete miss
_LIST_AGAIN_S = 30.0  # other processes write and remove, too
_TOUCH_AGAIN_S = 30.0  # a system call for every hit would be too much
_PAUSE_S = 60.0  # without writing after the system has refused one
_FLUSH_S = 3.0  # for writes that are queued when the cache is closed
_JOIN_S = 5.0


@dataclass(slots=True, eq=False)
class ReadJob:
    """Blocks of one chain, to be filled in order."""

    shelf: Shelf
    names: list[BlockName]
    blocks: list[BlockId]
    seconds: list[float] = field(default_factory=list)  # of the sound ones, from the first on: what they cost


@dataclass(frozen=True, slots=True, eq=False)
class WriteJob:
    """A block to be written; it does not change and stays where it is until the job is done."""

    shelf: Shelf
    name: BlockName
    block: BlockId


class Disk:
    """Block files in one folder that several processes may share."""

    def __init__(self, context: PluginContext, folder: Path, max_bytes: int, most_writes: int) -> None:
        self._context = context
        self._model = model_name(context.digest)
        self._folder = folder
        self._most_writes = most_writes
        self._prefix = f"{folder / self._model.hex()}/"
        self._ours: dict[str, Shelf] = {}  # by folder
        self._shelves = Shelves(folder, max_bytes, self._ours)
        self._wakeup = threading.Condition()
        self._reads: deque[ReadJob] = deque()
        self._writes: deque[WriteJob] = deque()
        self._chores: deque[Callable[[], None]] = deque()
        self._pending: set[bytes] = set()  # keys in the queue of writes
        self._read: deque[ReadJob] = deque()  # done
        self._written: deque[WriteJob] = deque()
        self._close_by: float | None = None
        self._no_writes_until = 0.0
        self._has_warned: set[str] = set()
        self._serial = 0
        self._list_at = 0.0
        self._num_reads = self._num_writes = self._num_ignored = self._num_failures = self._num_skipped = 0
        self._is_listed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ortserve-prompt-cache", daemon=True)
        self._thread.start()
        self._is_listed.wait(_FIRST_LISTING_S)

    def shelf(self, root: bytes) -> Shelf:
        """The files of one salt of this model."""
        folder = self._prefix + root.hex()
        return self._ours.get(folder) or self._ours.setdefault(folder, Shelf(folder))

    def known_shelf(self, root: bytes) -> Shelf | None:
        """The same, if there is any file."""
        shelf = self._ours.get(self._prefix + root.hex())
        return shelf if shelf is not None and shelf.records else None

    def name(self, root: bytes, key: bytes, parent: bytes, packed: bytes, seconds: float = 0.0) -> BlockName:
        """A block of this model."""
        return BlockName(self._model, root, key, parent, packed, seconds)

    def has(self, shelf: Shelf, key: bytes) -> bool:
        """Whether a block is on disk, or about to be."""
        return key in shelf.records or key in self._pending

    def queue_read(self, job: ReadJob) -> None:
        """It comes out of `read` in any case."""
        with self._wakeup:
            self._reads.append(job)
            self._wakeup.notify()

    def queue_write(self, job: WriteJob) -> bool:
        """If there is room, it comes out of `written` in any case."""
        if len(self._pending) >= self._most_writes or self._context.clock() < self._no_writes_until:
            self._num_skipped += 1
            return False
        with self._wakeup:
            self._pending.add(job.name.key)
            self._writes.append(job)
            self._wakeup.notify()
        return True

    def touch(self, shelf: Shelf, key: bytes) -> None:
        """The prefix that ends with this block has been used; those before it cannot be removed earlier."""
        record, now = shelf.records.get(key), self._context.wall_clock()
        if record is not None and abs(now - record.used_at) > _TOUCH_AGAIN_S:
            record.used_at = now
            self._do(partial(self._shelves.touch, shelf, key, now))

    def forget(self, root: bytes | None) -> int:
        """Forget one salt's files, or all of this model, at once; they are deleted later. Returns how many."""
        folders = [folder for folder in list(self._ours) if folder.startswith(self._prefix)]
        if root is not None:
            folders = [self._prefix + root.hex()]
        num_forgotten = 0
        for folder in folders:
            old = self._ours.get(folder)
            num_forgotten += 0 if old is None else len(old.records)
            self._ours[folder] = fresh = Shelf(folder, is_being_emptied=True)
            self._do(partial(self._shelves.empty, fresh))
        if root is None:
            self._do(partial(self._shelves.empty_unlisted, self._prefix))
        return num_forgotten

    def read(self) -> Iterator[ReadJob]:
        """Reads that are done since the last call."""
        while self._read:
            yield self._read.popleft()

    def written(self) -> WriteJob | None:
        """The next write that is done, well or not."""
        if not self._written:
            return None
        job = self._written.popleft()
        self._pending.discard(job.name.key)
        return job

    def records(self) -> Iterator[tuple[bytes, bytes, Record]]:
        """Root, key and record of every file of this model."""
        for folder, shelf in list(self._ours.items()):
            if folder.startswith(self._prefix):
                root = bytes.fromhex(folder.removeprefix(self._prefix))
                yield from ((root, key, record) for key, record in shelf.records.copy().items())

    def stats(self) -> TierStats:
        """A snapshot; sizes are of all models in the folder."""
        return TierStats(
            num_blocks=sum(len(shelf.records) for shelf in self._shelves.all()),
            num_bytes=self._shelves.num_bytes,
            num_reads=self._num_reads,
            num_writes=self._num_writes,
            num_evicted_blocks=self._shelves.num_evicted,
            num_ignored_files=self._num_ignored,
            num_failures=self._num_failures,
            num_skipped_writes=self._num_skipped,
        )

    def close(self) -> None:
        """Write what is queued, for a few seconds at most."""
        with self._wakeup:
            self._close_by = time.monotonic() + _FLUSH_S
            self._reads.clear()
            self._wakeup.notify()
        self._thread.join(_JOIN_S)

    def _do(self, chore: Callable[[], None]) -> None:
        with self._wakeup:
            self._chores.append(chore)
            self._wakeup.notify()

    def _run(self) -> None:
        self._attempt(partial(_make_folder, self._folder), may_be_missing=False)  # what is wrong with it shows at once
        self._attempt(self._list)
        self._is_listed.set()
        while True:
            with self._wakeup:
                idle = not (self._reads or self._chores or self._writes)
                if idle and self._close_by is None:
                    idle = not self._wakeup.wait(_LIST_AGAIN_S)
                if self._close_by is not None and (idle or time.monotonic() > self._close_by):
                    return
                job = self._next_job()
            if job is not None:
                job()
            if time.monotonic() > self._list_at:
                self._attempt(self._list)

    def _next_job(self) -> Callable[[], object] | None:
        if self._reads:
            read = self._reads.popleft()
            return partial(self._do_read, read)
        if self._chores:
            chore = self._chores.popleft()
            return partial(self._attempt, chore)
        if self._writes:
            write = self._writes.popleft()
            return partial(self._do_write, write)
        return None

    def _list(self) -> None:
        self._list_at = time.monotonic() + _LIST_AGAIN_S
        now = self._context.wall_clock()
        self._shelves.scan(now)
        self._shelves.enforce(now)

    def _do_read(self, job: ReadJob) -> None:
        for name, block in zip(job.names, job.blocks, strict=True):
            if not self._attempt(partial(self._read_one, job, name, block)):
                self._shelves.drop(job.shelf, name.key)
                self._attempt(self._list)  # where one file is missing, others may be
                break
        self._read.append(job)
        self._context.wake()

    def _read_one(self, job: ReadJob, name: BlockName, block: BlockId) -> None:
        path = Path(job.shelf.folder) / name.file_name
        try:
            with self._context.io.view(block) as view:
                seconds = read_block(path, name, view)
        except BadBlockError as error:
            self._num_ignored += 1
            self._warn_once("damaged", f"the prompt cache ignores {path}: {error}")
            if error.is_ours:
                path.unlink(missing_ok=True)
            else:
                job.shelf.ignored.add(name.key)
            raise
        job.seconds.append(seconds)
        self._num_reads += 1

    def _do_write(self, job: WriteJob) -> None:
        write = partial(self._write_one, job)
        if self._context.clock() >= self._no_writes_until and not self._attempt(write, may_be_missing=False):
            self._no_writes_until = self._context.clock() + _PAUSE_S
        self._written.append(job)  # nobody waits for it: whoever polls or evicts next takes it out

    def _write_one(self, job: WriteJob) -> None:
        if self._shelves.shelf(job.shelf.folder) is not job.shelf:
            return  # forgotten meanwhile
        now = self._context.wall_clock()
        self._serial += 1
        folder = Path(job.shelf.folder)
        _make_folder(folder)
        with self._context.io.view(job.block) as view:
            try:
                num_bytes = write_block(folder, job.name, view, now, self._serial)
            except FileNotFoundError:  # another process has removed the folder in between
                _make_folder(folder)
                num_bytes = write_block(folder, job.name, view, now, self._serial)
        self._num_writes += 1
        self._shelves.add(job.shelf, job.name.key, Record(job.name.parent, num_bytes, now))
        self._shelves.enforce(now)

    def _attempt(self, action: Callable[[], None], *, may_be_missing: bool = True) -> bool:
        """Whether it went well; nothing may end the thread. A file that is read may have been removed by others."""
        try:
            action()
        except BadBlockError:
            return False  # already spoken of
        except OSError as error:
            if may_be_missing and isinstance(error, FileNotFoundError):
                return False
            self._num_failures += 1
            self._warn_once("refused", f"the prompt cache cannot use {self._folder} ({error}): requests go on without")
            return False
        except Exception as error:  # a defect of ours costs the tier, not the server
            self._num_failures += 1
            self._warn_once("defect", f"the prompt cache's disk thread failed ({type(error).__name__}: {error})")
            return False
        return True

    def _warn_once(self, kind: str, line: str) -> None:
        if kind not in self._has_warned:
            self._has_warned.add(kind)
            self._context.warn(line)


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what users have written can be guessed from the bytes
