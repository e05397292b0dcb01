"""The prompt cache of layout "pages": it holds the very blocks that sequences computed, and sequences share them.

Nothing is copied but the block in which a shared prefix ends, since a block with more than one holder is never written.
Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Values

from ortserve.plugins.api import Hit, Part, PromptCache
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.scheduling.blocks import BlockPool
from ortserve.runtime.scheduling.cache_blocks import CacheBlocks
from ortserve.runtime.scheduling.reuse import Reuse
from ortserve.runtime.sequence import Sequence
from ortserve.runtime.step import CopyBlock, Move


def share_blocks(
    pool: BlockPool, sequence: Sequence, blocks: Values[int], num_tokens: int, block_size: int
) -> Move | None:
    """Give a sequence without blocks the first `num_tokens` tokens of others' blocks.

    Whole blocks get one more holder; the bytes of a part are copied by the returned move into a block of its own.
    """
    assert not sequence.blocks, "its own tokens would be forgotten"
    num_whole, num_rest = divmod(num_tokens, block_size)
    pool.retain(blocks[:num_whole])
    sequence.blocks = list(blocks[:num_whole])
    if num_rest == 0:
        return None
    (own,) = pool.allocate(1)
    sequence.blocks.append(own)
    return CopyBlock(sequence.request.id, blocks[num_whole], own)


class PageReuse(Reuse):
    """The cache of one engine whose blocks are shared in place."""

    def save(self, sequence: Sequence, *, is_last: bool = False) -> Move | None:
        """Publish whole blocks that are computed, at the end also the tail: nothing needs to be moved for it."""
        end = self._save_end(sequence, is_last=is_last)
        ticket, start = sequence.ticket, sequence.num_saved
        if is_last:
            sequence.ticket = None
        if ticket is None:
            return None
        if end > start:
            size = self._plan.block_size
            blocks = tuple(sequence.blocks[start // size : -(-end // size)])
            self.pool.retain(blocks)
            part = Part(start, tuple(sequence.tokens[:end]), blocks, sequence.seconds_unsaved)
            self.pool.release(self._publish(ticket, part))
            self._saved(sequence, start, end)
        if is_last:
            self._finish(ticket, ok=True)
        return None

    def _take(self, sequence: Sequence, slot: int, hit: Hit) -> Move | None:
        del slot  # blocks say it all
        return share_blocks(self.pool, sequence, hit.blocks, hit.num_tokens, self._plan.block_size)


def new_page_reuse(plan: EnginePlan, make: Callable[[CacheBlocks], PromptCache]) -> Reuse:
    """A pool of the device's blocks, which sequences and the cache that `make` returns share."""
    pool = BlockPool(plan.num_blocks)
    owned = CacheBlocks(pool)
    return PageReuse(make(owned), plan, pool, owned)
