"""Which block goes first: GreedyDual-Size over the leaves of the tree. Knows no tokens and no arena.

Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms", USENIX Symposium on Internet Technologies and Systems, 1997:
an entry is worth the clock at its last use plus its cost per byte; the least worth goes, and the clock moves up to what
it was worth. All blocks have the same size, so cost per byte and cost per block (the seconds that computing it took)
order alike. Where costs are equal this is least recently used.
"""

from __future__ import annotations

import heapq
from itertools import count

from ortserve.plugins.prefix_cache.tree import Node


class GreedyDual:
    """A heap of candidates, cleaned when popped: each node has at most one entry, perhaps out of date."""

    def __init__(self) -> None:
        self._inflation = 0.0  # the clock of the paper
        self._ticks = count(1)
        self._serials = count()  # nodes have no order of their own
        self._heap: list[tuple[float, int, int, Node]] = []

    def touch(self, node: Node, now: float) -> None:
        """The prefix that ends here has been used.

        Only the deepest node is marked: its parents cannot go before it, and inherit the mark when it goes.
        """
        node.tick = next(self._ticks)
        node.touched_at = now
        node.touched_inflation = self._inflation

    def offer(self, node: Node) -> None:
        """The node may have become a candidate."""
        if not node.is_queued and node.can_go:
            node.is_queued = True
            worth = node.touched_inflation + node.seconds
            heapq.heappush(self._heap, (worth, node.tick, next(self._serials), node))

    def pop(self) -> Node | None:
        """The candidate that is worth least, without a lifetime; None when there is none. The caller detaches it."""
        while self._heap:
            worth, tick, _, node = heapq.heappop(self._heap)
            node.is_queued = False
            if not node.can_go or node.pinned_until > 0.0:
                continue  # offered again when that ends
            if tick != node.tick or worth != node.touched_inflation + node.seconds:
                self.offer(node)  # used since; worth only grows, so whatever is popped first is still the least
                continue
            self._inflation = max(self._inflation, worth)
            return node
        return None

    def inherit(self, parent: Node, child: Node) -> None:
        """`child` goes: every use of it was a use of its parent."""
        parent.num_hits += child.num_hits
        if child.tick > parent.tick:
            parent.tick, parent.touched_at = child.tick, child.touched_at
            parent.touched_inflation = child.touched_inflation
        self.offer(parent)
