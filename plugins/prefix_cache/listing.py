"""What is kept, for people: the nodes of one tree as entries. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from ortserve.plugins.api import Entry
from ortserve.plugins.prefix_cache.tree import Node


def entries_below(root: Node, bytes_per_block: int, now: float) -> Iterator[Entry]:
    """Parents before children. A use is marked at the deepest block only; it counts for all blocks before it."""
    nodes = list(root.descendants())
    hits = {node: node.num_hits for node in (root, *nodes)}
    touched = {node: node.touched_at for node in (root, *nodes)}
    for node in reversed(nodes):
        assert node.parent is not None
        hits[node.parent] += hits[node]
        touched[node.parent] = max(touched[node.parent], touched[node])
    for node in nodes:
        parent = node.parent
        yield Entry(
            key=node.key.hex(),
            parent=None if parent is None or parent.parent is None else parent.key.hex(),
            num_tokens=node.num_tokens,
            depth=node.depth,
            tier="memory",
            num_bytes=bytes_per_block,
            num_hits=hits[node],
            idle_s=max(0.0, now - touched[node]),
            pinned_s=node.pinned_until - now if node.pinned_until > now else None,
        )
