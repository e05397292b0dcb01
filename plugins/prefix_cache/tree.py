"""A tree of token blocks, one root per salt: what is stored, and the longest stored prefix of a query.

Knows no arena, no budget and no order of eviction. Tokens themselves are compared, byte by byte, so that a lookup
neither hashes blocks nor trusts a hash; each node's SHA-256 key is its name outside this process.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

from ortserve.plugins.api import BlockId
from ortserve.plugins.prefix_cache.keys import TOKEN_BYTES, block_key, num_shared

NO_BLOCK: BlockId = -1  # of a root


class Node:
    """One block of tokens below the blocks before it. A block that is filled in part has no children."""

    __slots__ = (
        "block",
        "children",
        "depth",
        "has_lifetime_entry",
        "is_attached",
        "is_queued",
        "key",
        "num_hits",
        "order",
        "packed",
        "parent",
        "pinned_until",
        "pins",
        "seconds",
        "seconds_to_here",
        "tick",
        "touched_at",
        "touched_inflation",
    )

    def __init__(
        self, key: bytes, parent: Node | None, packed: bytes, *, block: BlockId = NO_BLOCK, seconds: float = 0.0
    ) -> None:
        self.key = key
        self.parent = parent
        self.packed = packed
        self.block = block
        self.seconds = seconds  # what computing it took: what evicting it may cost
        self.seconds_to_here: float = seconds + (0.0 if parent is None else parent.seconds_to_here)
        self.depth: int = 0 if parent is None else parent.depth + len(parent.packed) // TOKEN_BYTES
        self.children: dict[bytes, Node] = {}  # by packed tokens
        self.order: list[bytes] = []  # the same keys, sorted: the best partial match is a neighbour
        self.pins = 0  # holders of the prefix that ends here; when detached, also those below
        self.is_attached = True
        self.num_hits = 0  # of this node as the deepest one, and of evicted children
        self.is_queued = False  # has an entry in the heap of candidates
        self.tick = 0
        self.touched_at = 0.0
        self.touched_inflation = 0.0
        self.pinned_until = 0.0  # 0: no lifetime
        self.has_lifetime_entry = False

    @property
    def num_tokens(self) -> int:
        """In this block."""
        return len(self.packed) // TOKEN_BYTES

    @property
    def end(self) -> int:
        """Tokens of the prefix that ends with this block."""
        return self.depth + len(self.packed) // TOKEN_BYTES

    @property
    def can_go(self) -> bool:
        """Whether nothing but a lifetime speaks against evicting it: a parent goes after its children."""
        return self.is_attached and not self.children and self.pins == 0 and self.parent is not None

    def path(self) -> list[Node]:
        """The blocks from the first to this one, without the root."""
        nodes: list[Node] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def descendants(self) -> Iterator[Node]:
        """All below, parents before children."""
        pending = [self]
        while pending:
            children = pending.pop().children.values()
            yield from children
            pending.extend(children)


@dataclass(frozen=True, slots=True)
class Found:
    """The longest stored prefix: its blocks, how many tokens, and the deepest node (perhaps used in part)."""

    node: Node | None = None
    blocks: tuple[BlockId, ...] = ()
    num_tokens: int = 0


class Tree:
    """Roots by key; the salt itself is not kept. Two salts never share a node."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._roots: dict[bytes, Node] = {}

    def root(self, key: bytes) -> Node:
        """Where prefixes of this salt begin; made on first use."""
        found = self._roots.get(key)
        if found is None:
            found = self._roots[key] = Node(key, None, b"")
        return found

    def roots(self) -> list[Node]:
        """All of them."""
        return list(self._roots.values())

    def pop_root(self, key: bytes) -> Node | None:
        """Forget a root; what hangs below is the caller's to detach."""
        return self._roots.pop(key, None)

    def drop_if_empty(self, root: Node) -> None:
        """Salts come and go: a root with nothing below must not stay for ever."""
        if root.is_attached and not root.children and root.pins == 0:
            del self._roots[root.key]
            root.is_attached = False

    def find(self, root: bytes, packed: bytes, limit: int) -> Found:
        """The longest stored prefix of `packed`, at most `limit` tokens; the last block may be used in part."""
        node = self._roots.get(root)
        if node is None:
            return Found()
        blocks: list[BlockId] = []
        end, stride = limit * TOKEN_BYTES, self._block_size * TOKEN_BYTES
        position = 0
        while position + stride <= end:
            child = node.children.get(packed[position : position + stride])
            if child is None:
                break
            blocks.append(child.block)
            node = child
            position += stride
        num_tokens = position // TOKEN_BYTES
        part, shared = best_child(node, packed[position : min(position + stride, end)])
        if part is not None:
            blocks.append(part.block)
            node, num_tokens = part, num_tokens + shared
        return Found(node, tuple(blocks), num_tokens) if blocks else Found()

    def attach(self, parent: Node, packed: bytes, block: BlockId, seconds: float) -> Node:
        """Add a block below `parent`, where no child begins with these tokens."""
        node = Node(block_key(parent.key, packed), parent, packed, block=block, seconds=seconds)
        parent.children[packed] = node
        insort(parent.order, packed)
        return node

    def detach(self, node: Node) -> None:
        """Take a leaf out."""
        assert node.parent is not None
        assert not node.children, "a parent goes after its children"
        node.is_attached = False
        parent = node.parent
        del parent.children[node.packed]
        del parent.order[bisect_left(parent.order, node.packed)]


def best_child(node: Node, packed: bytes) -> tuple[Node | None, int]:
    """The child that shares most leading tokens with `packed`, at least one.

    In sorted order the longest common prefix with a string is that with one of the two neighbours of its place.
    """
    order = node.order
    if not order or not packed:
        return None, 0
    place = bisect_left(order, packed)
    best, most = None, 0
    for name in order[max(place - 1, 0) : place + 1]:
        shared = num_shared(name, packed)
        if shared > most:
            best, most = node.children[name], shared
    return best, most


def covering_child(node: Node, packed: bytes) -> Node | None:
    """The child whose tokens begin with `packed`."""
    exact = node.children.get(packed)
    if exact is not None:
        return exact
    place = bisect_left(node.order, packed)
    if place < len(node.order) and node.order[place].startswith(packed):
        return node.children[node.order[place]]
    return None


def covered_child(node: Node, packed: bytes) -> Node | None:
    """The child whose tokens are the beginning of `packed`: there is at most one, for no child begins another."""
    place = bisect_left(node.order, packed)
    if place > 0 and packed.startswith(node.order[place - 1]):
        return node.children[node.order[place - 1]]
    return None
