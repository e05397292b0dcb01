"""Blocks that must stay for some time: deadlines, in order, and at most so many. Knows no tokens and no arena."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count

from ortserve.plugins.prefix_cache.tree import Node


class Lifetimes:
    """At most `most` nodes have a lifetime at once, or requests with breakpoints would leave no room for others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._num_pinned = 0
        self._serials = count()
        self._heap: list[tuple[float, int, Node]] = []  # one entry per node, perhaps too early

    def extend(self, node: Node, until: float) -> bool:
        """Keep the node at least until then; False if too many others are kept."""
        if node.pinned_until == 0.0:
            if self._num_pinned >= self._most:
                return False
            self._num_pinned += 1
        node.pinned_until = max(node.pinned_until, until)
        if not node.has_lifetime_entry:
            self._push(node)
        return True

    def end(self, node: Node) -> None:
        """Keep it no longer; the caller offers it for eviction."""
        if node.pinned_until > 0.0:
            node.pinned_until = 0.0
            self._num_pinned -= 1

    def expired(self, now: float) -> Iterator[Node]:
        """Nodes whose lifetime is over, once each."""
        while self._heap and self._heap[0][0] <= now:
            node = heapq.heappop(self._heap)[2]
            node.has_lifetime_entry = False
            if node.pinned_until > now:
                self._push(node)  # extended since
            elif node.pinned_until > 0.0:
                self.end(node)
                yield node

    def _push(self, node: Node) -> None:
        node.has_lifetime_entry = True
        heapq.heappush(self._heap, (node.pinned_until, next(self._serials), node))
