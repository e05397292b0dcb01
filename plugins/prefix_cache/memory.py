"""The tier in memory: the tree, who holds which part of it, and what goes when room is needed.

Knows no requests, no hits and no disk. Every block id in it is one reference to the engine's arena.
"""

from __future__ import annotations

from collections.abc import Iterator

from ortserve.plugins.api import BlockId, PluginContext
from ortserve.plugins.prefix_cache.eviction import GreedyDual
from ortserve.plugins.prefix_cache.lifetimes import Lifetimes
from ortserve.plugins.prefix_cache.tree import Found, Node, Tree, covered_child, covering_child


class Memory:
    """Blocks by prefix, within the context's byte budget."""

    def __init__(self, context: PluginContext, pinned_share: float) -> None:
        self._context = context
        self._clock = context.clock
        self._budget = context.byte_budget // context.bytes_per_block  # blocks
        self._tree = Tree(context.block_size)
        self._order = GreedyDual()
        self._lifetimes = Lifetimes(int(self._budget * pinned_share))
        self._detached: dict[BlockId, Node] = {}  # forgotten or replaced, but a hit still reads them
        self.num_blocks = 0  # in the tree
        self._num_reserved = 0  # taken from the arena for blocks that are being read
        self.num_evicted = 0

    @property
    def budget(self) -> int:
        """Blocks it may hold."""
        return self._budget

    @property
    def _num_used(self) -> int:
        return self.num_blocks + len(self._detached) + self._num_reserved

    def find(self, root: bytes, packed: bytes, limit: int) -> Found:
        """The longest stored prefix of at most `limit` tokens below the root of this key."""
        return self._tree.find(root, packed, limit)

    def root(self, key: bytes) -> Node:
        """Where blocks of one salt are added; hold it before adding."""
        return self._tree.root(key)

    def roots(self) -> list[Node]:
        """One per salt."""
        return self._tree.roots()

    def held(self) -> Iterator[BlockId]:
        """Every block of the tree, and those that wait for a hit's release."""
        for root in self._tree.roots():
            yield from (node.block for node in root.descendants())
        yield from self._detached

    def touch(self, node: Node) -> None:
        """A hit ends at this node."""
        node.num_hits += 1
        self._order.touch(node, self._clock())

    def hold(self, node: Node) -> None:
        """Nothing up to this node may go."""
        assert node.is_attached, "what is forgotten can only be let go"
        node.pins += 1

    def let_go(self, node: Node) -> int:
        """End one `hold`. Returns how many forgotten blocks were given back because nobody else holds them."""
        num_given_back = 0
        while True:
            node.pins -= 1
            assert node.pins >= 0, "let go more often than held"
            if node.is_attached:
                self._order.offer(node)
                if node.parent is None:
                    self._tree.drop_if_empty(node)
                return num_given_back
            if node.pins == 0 and self._detached.pop(node.block, None) is not None:
                self._context.blocks.give_back((node.block,))
                num_given_back += 1
            above = node.parent
            if above is None:
                return num_given_back
            node = above  # a detached node counts the holders below it: what is above waits for them, too

    def add(self, parent: Node, packed: bytes, block: BlockId, seconds: float) -> tuple[Node | None, bool]:
        """Store one block below `parent`, which the caller holds.

        Returns the node that now covers these tokens and whether it took the block: another may cover them already. No
        node: there is no room.
        """
        present = covering_child(parent, packed)
        if present is not None:
            self._order.touch(present, self._clock())
            return present, False
        shorter = covered_child(parent, packed)
        if (shorter is None or shorter.pins > 0) and not self.has_room(1):
            return None, False
        if shorter is not None:
            self._replace(shorter)
            seconds = max(seconds, shorter.seconds)
        node = self._tree.attach(parent, packed, block, seconds)
        self.num_blocks += 1
        self._order.touch(node, self._clock())
        if shorter is not None:
            self._inherit(node, shorter)
        self._order.offer(node)
        return node, True

    def has_room(self, count: int) -> bool:
        """Whether the budget allows `count` more blocks, after evicting if need be."""
        missing = self._num_used + count - self._budget
        return missing <= 0 or self.evict(missing) == missing

    def evict(self, count: int) -> int:
        """Give back up to `count` blocks, the least valuable first. Returns how many."""
        for expired in self._lifetimes.expired(self._clock()):
            self._order.offer(expired)
        done = 0
        while done < count:
            node = self._order.pop()
            if node is None:
                break
            assert node.parent is not None
            self._tree.detach(node)
            self._order.inherit(node.parent, node)
            if node.parent.parent is None:
                self._tree.drop_if_empty(node.parent)
            self._context.blocks.give_back((node.block,))
            done += 1
        self.num_blocks -= done
        self.num_evicted += done
        return done

    def reserve(self, count: int) -> list[BlockId]:
        """Up to `count` blocks of the arena to read something into, evicting others if need be."""
        self.has_room(count)
        allowed = min(count, self._budget - self._num_used)
        if allowed <= 0:
            return []
        blocks = list(self._context.blocks.take(allowed))
        if len(blocks) < allowed:
            self.evict(allowed - len(blocks))
            blocks += self._context.blocks.take(allowed - len(blocks))
        self._num_reserved += len(blocks)
        return blocks

    def unreserve(self, count: int) -> None:
        """So many blocks have been read: they are added or given back now."""
        self._num_reserved -= count

    def keep(self, node: Node, ttl_s: float) -> bool:
        """Give the node a lifetime, from now; False if it has none because too many others have."""
        now = self._clock()
        for expired in self._lifetimes.expired(now):
            self._order.offer(expired)
        return self._lifetimes.extend(node, now + ttl_s)

    def keep_no_longer(self, node: Node) -> None:
        """End its lifetime."""
        self._lifetimes.end(node)
        self._order.offer(node)

    def forget(self, key: bytes) -> int:
        """Empty one salt's tree; what a hit reads goes at its release. Returns how many blocks."""
        root = self._tree.pop_root(key)
        if root is None:
            return 0
        nodes = list(root.descendants())
        root.is_attached = False
        for node in reversed(nodes):  # children first: a detached node counts the holders below it
            node.is_attached = False
            self._lifetimes.end(node)
            assert node.parent is not None
            node.parent.pins += node.pins
            if node.pins:
                self._detached[node.block] = node
        self._context.blocks.give_back([node.block for node in nodes if not node.pins])
        for node in (root, *nodes):
            node.children, node.order = {}, []
        self.num_blocks -= len(nodes)
        return len(nodes)

    def _replace(self, shorter: Node) -> None:
        """Take out a block that a longer version of the same replaces."""
        assert shorter.parent is not None
        self._tree.detach(shorter)
        self.num_blocks -= 1
        if shorter.pins:
            shorter.parent.pins += shorter.pins  # what is above stays as long as the old version is read
            self._detached[shorter.block] = shorter
        else:
            self._context.blocks.give_back((shorter.block,))

    def _inherit(self, node: Node, shorter: Node) -> None:
        node.num_hits = shorter.num_hits
        if shorter.pinned_until > 0.0:
            until = shorter.pinned_until
            self._lifetimes.end(shorter)
            self._lifetimes.extend(node, until)
