"""Joins the tree in memory and the tier on disk, on the engine's thread: what is written, read back, and listed.

Knows no requests: who waits for a load is a list of hit ids. Only whole blocks go to disk: a conversation's tail is
replaced with every turn, and costs less than one block to compute again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ortserve.plugins.api import BlockId, Entry, PluginContext, TierStats
from ortserve.plugins.prefix_cache.blockfile import BlockName
from ortserve.plugins.prefix_cache.disk import Disk, ReadJob, WriteJob
from ortserve.plugins.prefix_cache.keys import TOKEN_BYTES, block_key
from ortserve.plugins.prefix_cache.memory import Memory
from ortserve.plugins.prefix_cache.tree import Found, Node


@dataclass(slots=True, eq=False)
class Load:
    """Blocks on their way from disk to below `tip`, which is held until they are there."""

    tip: Node
    job: ReadJob
    hit_ids: list[int] = field(default_factory=list)
    reached: Node | None = None  # the deepest block that has come, if any has


class SecondTier:
    """Writes through what memory has taken, and reads back what it has not."""

    def __init__(self, context: PluginContext, memory: Memory, disk: Disk) -> None:
        self._context = context
        self._memory = memory
        self._disk = disk
        self._stride = context.block_size * TOKEN_BYTES
        self._loads: dict[bytes, Load] = {}  # by the key of their first block
        self._writing: dict[WriteJob, Node] = {}  # each node is held

    def load(self, root: bytes, packed: bytes, limit: int, found: Found) -> Load | None:
        """Begin to read what the disk has beyond `found`, or join who reads it already; None if there is nothing."""
        shelf = self._disk.known_shelf(root)
        if shelf is None:
            return None
        tip = found.node
        if tip is not None and (tip.end > found.num_tokens or tip.num_tokens < self._context.block_size):
            tip = tip.parent
        begin = 0 if tip is None else tip.end * TOKEN_BYTES
        key = root if tip is None else tip.key
        names: list[BlockName] = []
        for position in range(begin, limit * TOKEN_BYTES - self._stride + 1, self._stride):
            tokens = packed[position : position + self._stride]
            parent, key = key, block_key(key, tokens)
            if not names and key in self._loads:
                return self._loads[key]
            if key not in shelf.records:
                break
            names.append(self._disk.name(root, key, parent, tokens))
        if not names:
            return None
        tip = tip or self._memory.root(root)
        self._memory.hold(tip)
        blocks = self._memory.reserve(len(names))
        if not blocks:
            self._memory.let_go(tip)
            return None
        load = Load(tip, ReadJob(shelf, names[: len(blocks)], blocks))
        self._loads[names[0].key] = load
        self._disk.queue_read(load.job)
        return load

    def write(self, root: bytes, node: Node) -> None:
        """Write a whole block, unless it is on disk or its parent is not: a chain with a hole is never found."""
        shelf, parent = self._disk.shelf(root), node.parent
        if parent is None or not node.is_attached or self._disk.has(shelf, node.key):
            return
        if parent.parent is not None and not self._disk.has(shelf, parent.key):
            return
        job = WriteJob(shelf, self._disk.name(root, node.key, parent.key, node.packed, node.seconds), node.block)
        if self._disk.queue_write(job):
            self._memory.hold(node)
            self._writing[job] = node

    def used(self, root: bytes, node: Node, *, durable: bool) -> None:
        """A hit ends at this node: its prefix must outlive others on disk; a durable one's is written if it never was.

        What a request in memory only has computed thus reaches the disk once another request brings the same tokens.
        """
        whole = node if node.num_tokens == self._context.block_size else node.parent
        shelf = self._disk.shelf(root)
        if whole is None or whole.parent is None:
            return
        if self._disk.has(shelf, whole.key):
            self._disk.touch(shelf, whole.key)
            return
        if not durable:
            return
        for above in whole.path():
            self.write(root, above)

    def finished(self) -> list[Load]:
        """Loads that are done, their blocks in the tree as far as they came; the caller ends each with `end`."""
        self.let_written_go(None)
        loads = [self._loads.pop(job.names[0].key) for job in self._disk.read()]
        for load in loads:
            self._add(load)
        return loads

    def let_written_go(self, most: int | None) -> int:
        """Blocks that have been written can be evicted; those forgotten meanwhile go now, about `most` of them.

        Returns how many have gone.
        """
        num_given_back = 0
        while most is None or num_given_back < most:
            job = self._disk.written()
            if job is None:
                break
            num_given_back += self._memory.let_go(self._writing.pop(job))
        return num_given_back

    def end(self, load: Load) -> None:
        """Whoever waited for it holds what has come."""
        self._memory.let_go(load.tip)

    def _add(self, load: Load) -> None:
        job = load.job
        self._memory.unreserve(len(job.blocks))
        unwanted = list(job.blocks[len(job.seconds) :])
        is_whole = load.tip.is_attached  # not forgotten meanwhile
        for name, block, seconds in zip(job.names, job.blocks, job.seconds, strict=False):
            child, is_taken = None, False
            if is_whole:
                child, is_taken = self._memory.add(load.tip, name.packed, block, seconds)
            if not is_taken:
                unwanted.append(block)
            if child is None:
                is_whole = False
                continue
            self._memory.hold(child)
            self._memory.let_go(load.tip)
            load.tip = load.reached = child
        self._context.blocks.give_back(unwanted)

    def held(self) -> Iterator[BlockId]:
        """Blocks that are being read."""
        for load in self._loads.values():
            yield from load.job.blocks

    def forget(self, root: bytes | None) -> int:
        """Forget the files of one salt or all. Returns how many."""
        return self._disk.forget(root)

    def entries(self, now: float) -> Iterator[Entry]:
        """Blocks on disk, parents before children; those whose parents are gone cannot be found and are not listed."""
        size = self._context.block_size
        children: dict[bytes, list[tuple[bytes, int, float]]] = {}
        roots: set[bytes] = set()
        for root, key, record in self._disk.records():
            children.setdefault(record.parent, []).append((key, record.num_bytes, record.used_at))
            roots.add(root)
        pending = [(root, 0) for root in roots]
        while pending:
            parent, depth = pending.pop()
            for key, num_bytes, used_at in children.get(parent, ()):
                yield Entry(
                    key=key.hex(),
                    parent=None if parent in roots else parent.hex(),
                    num_tokens=size,
                    depth=depth,
                    tier="disk",
                    num_bytes=num_bytes,
                    num_hits=0,
                    idle_s=max(0.0, now - used_at),
                    pinned_s=None,
                )
                pending.append((key, depth + size))

    def stats(self) -> TierStats:
        """A snapshot."""
        return self._disk.stats()

    def close(self) -> None:
        """Write what is queued, for a few seconds at most."""
        self._disk.close()
