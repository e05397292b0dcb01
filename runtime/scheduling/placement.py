"""Who holds a row and whose bytes are where: the queue, admission, growth and preemption. Knows no logits.

A preempted sequence is copied to host blocks and later restored bit for bit; only when no host block is free is it
computed again from its tokens.
"""

from __future__ import annotations

from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.scheduling.blocks import BlockPool
from ortserve.runtime.scheduling.fair_order import FairOrder, aged_priority
from ortserve.runtime.scheduling.page_reuse import share_blocks
from ortserve.runtime.scheduling.reuse import Reuse
from ortserve.runtime.scheduling.waiting_line import WaitingLine
from ortserve.runtime.sequence import Sequence, Stage
from ortserve.runtime.step import CopyRow, Move, ReleaseRow, SwapIn, SwapOut


class Placement:
    """Rows, blocks and the queue of one engine."""

    def __init__(self, plan: EnginePlan, reuse: Reuse) -> None:
        # In layout "pages" the cache shares the rows' blocks, in layout "slots" those of preempted sequences.
        self.blocks = reuse.pool if plan.shares_blocks else BlockPool(plan.num_blocks)
        self.host_blocks = BlockPool(plan.num_host_blocks) if plan.shares_blocks else reuse.pool
        self.reuse = reuse
        self.fair = FairOrder()
        self._plan = plan
        self._free_slots = list(range(plan.num_rows))
        self._queue = WaitingLine()
        self._running: list[Sequence] = []
        self._moves: list[Move] = []
        self.num_preemptions = 0

    @property
    def has_moves(self) -> bool:
        """Bytes are to be moved even if no sequence runs."""
        return bool(self._moves)

    @property
    def free_slots(self) -> tuple[int, ...]:
        """Rows nobody holds, for the audit."""
        return tuple(self._free_slots)

    @property
    def queued(self) -> tuple[Sequence, ...]:
        """Sequences without a row."""
        return tuple(self._queue)

    @property
    def num_queued(self) -> int:
        """How many these are."""
        return len(self._queue)

    @property
    def num_swapped(self) -> int:
        """Those of them whose bytes are in host blocks."""
        return self._queue.num_swapped

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Sequences with a row."""
        return tuple(self._running)

    def by_age(self) -> list[Sequence]:
        """Running sequences, largest priority first, then oldest: the last one is the next victim."""
        return sorted(self._running, key=_rank)

    def take_moves(self) -> tuple[Move, ...]:
        """The moves decided since the last call, in order. They are now part of a step."""
        moves, self._moves = tuple(self._moves), []
        self.reuse.moves_taken()
        return moves

    def enqueue(self, sequence: Sequence) -> None:
        """Put a sequence without a row into the queue."""
        self._queue.add(sequence)

    def discard(self, sequence: Sequence, *, is_complete: bool) -> None:
        """Free everything a sequence holds, in whatever stage; what a complete one has computed is saved first."""
        if sequence.stage is Stage.RUNNING:
            if is_complete:
                self._add(self.reuse.save(sequence, is_last=True))
            self._leave_row(sequence)
        else:
            self._queue.remove(sequence)
        self.reuse.abandon(sequence)
        self.host_blocks.release(sequence.host_blocks)
        sequence.host_blocks = []

    def save(self, sequence: Sequence) -> None:
        """Offer what a running sequence has computed of its prompt to the cache."""
        self._add(self.reuse.save(sequence))

    def admit(self, now_s: float) -> None:
        """Give rows to the head of the queue while rows and memory last.

        Larger priorities, and tenants with fewer rows than their share, get them at others' cost.

        Whose turn it is, `FairOrder` says.
        """
        self.reuse.poll()
        for sequence in self.fair.in_turns(self._queue.lines(), self._running, now_s):
            leader = self._leader(sequence)
            if leader is not None and leader.num_computed < self._num_shared(sequence):
                continue  # what it would compute is being computed; those behind it may pass
            if leader is None and sequence.stage is Stage.WAITING and self.reuse.is_held(sequence, now_s):
                continue
            if not self._make_room(sequence):
                return
            sequence.held_priority = aged_priority(sequence, now_s)
            self.fair.admit(sequence.request, now_s)
            self._enter_row(sequence, self._leader(sequence))

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Let a running sequence store `num_tokens`, preempting the youngest (perhaps itself) until it can."""
        while not self._find_room(self._num_missing(sequence, num_tokens)):
            victim = self.by_age()[-1]
            self._preempt(victim)
            if victim is sequence:
                return
        self.reserve(sequence, num_tokens)

    def has_blocks(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether `num_tokens` fit without preempting anyone."""
        return self._num_missing(sequence, num_tokens) <= self.blocks.num_free

    def is_settled(self, num_rows: int) -> bool:
        """Whether these rows are all that run, and nothing but the end of one of them can change that."""
        return len(self._running) == num_rows and not self._moves and not (self._queue and self._free_slots)

    def reserve_all(self, wanted: list[tuple[Sequence, int]]) -> bool:
        """As `reserve` for each sequence and its number of tokens, if all of them fit into blocks that are free."""
        if sum(self._num_missing(sequence, count) for sequence, count in wanted) > self.blocks.num_free:
            return False
        for sequence, count in wanted:
            self.reserve(sequence, count)
        return True

    def reserve(self, sequence: Sequence, num_tokens: int) -> None:
        """Take free blocks so that `num_tokens` fit."""
        sequence.blocks += self.blocks.allocate(self._num_missing(sequence, num_tokens))

    def _num_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks to add before `num_tokens` fit."""
        return max(0, -(-num_tokens // self._plan.block_size) - len(sequence.blocks))

    def _leader(self, sequence: Sequence) -> Sequence | None:
        """A running sequence that computes or has computed the same prompt for another choice of the same call."""
        request = sequence.request
        if request.group is None or sequence.stage is not Stage.WAITING or self._num_shared(sequence) == 0:
            return None
        if sequence.is_scoring:
            return None  # its own logits are wanted at every position
        return next(
            (
                other
                for other in self._running
                if other.request.group == request.group
                and other.request.prompt == request.prompt
                and other.regime == sequence.regime
            ),
            None,
        )

    def _num_shared(self, sequence: Sequence) -> int:
        """Prompt tokens to copy: the last is computed for its logits, with one before it for exactness."""
        return max(0, sequence.num_prompt_tokens - (2 if self._plan.deterministic else 1))

    def _make_room(self, sequence: Sequence) -> bool:
        """Whether a row and blocks are free, after preempting smaller priorities if that is enough."""
        num_blocks = self._num_missing(sequence, len(sequence.tokens) + 1) - self._num_found(sequence)
        if self._has_room(num_blocks, len(self._running)):
            return True
        if self._plan.shares_blocks and not self._running:
            # Only hits of the queue can be in the way: blocks that wait to be shared cannot be evicted.
            for other in self._queue:
                self.reuse.abandon(other)
            return self._has_room(self._num_missing(sequence, len(sequence.tokens) + 1), 0)
        lower = [other for other in self.by_age() if other.held_priority < sequence.request.priority]
        return self._displace(lower, num_blocks) or self._displace(
            self.fair.spared_for(sequence, self.by_age()), num_blocks
        )

    def _displace(self, victims: list[Sequence], num_blocks: int) -> bool:
        """Whether a row and blocks are free, after preempting the last ones if that is enough."""
        freed = sum(len(other.blocks) for other in victims)
        if not victims or self.blocks.num_free + freed < num_blocks:
            return False
        while victims and not self._has_room(num_blocks, 0):
            self._preempt(victims.pop())
        return self._has_room(num_blocks, 0)

    def _has_room(self, num_blocks: int, num_spare: int) -> bool:
        """`num_spare` blocks stay free, so that running sequences can grow before anyone is preempted again."""
        return bool(self._free_slots) and self._find_room(num_blocks + num_spare)

    def _find_room(self, num_blocks: int) -> bool:
        """Whether so many resident blocks are free, after the cache has given some back where it holds any."""
        return self.blocks.num_free >= num_blocks or (self._plan.shares_blocks and self.reuse.make_room(num_blocks))

    def _num_found(self, sequence: Sequence) -> int:
        """Blocks that a waiting sequence will share with the cache or with its leader instead of taking new ones."""
        if not self._plan.shares_blocks or sequence.stage is not Stage.WAITING:
            return 0
        leader = self._leader(sequence)
        shared = self.reuse.num_found(sequence) if leader is None else self._num_shared(sequence)
        return shared // self._plan.block_size

    def _enter_row(self, sequence: Sequence, leader: Sequence | None) -> None:
        self._queue.remove(sequence)
        slot = min(self._free_slots)  # low slots keep the bound batch narrow
        self._free_slots.remove(slot)
        if sequence.stage is Stage.SWAPPED:
            self.reserve(sequence, len(sequence.tokens) + 1)
            self._swap_in(sequence, slot)
            self.reuse.announce(sequence)
        elif leader is not None:
            assert leader.slot is not None
            count = self._num_shared(sequence)
            if self._plan.shares_blocks:
                self._add(share_blocks(self.blocks, sequence, leader.blocks, count, self._plan.block_size))
            else:
                self._moves.append(CopyRow(sequence.request.id, leader.slot, slot, count))
            sequence.num_computed = sequence.num_reused = count
            sequence.num_saved = count - count % self._plan.block_size  # by the leader
            self.reuse.announce(sequence)
        else:
            self._add(self.reuse.start(sequence, slot))
        self.reserve(sequence, len(sequence.tokens) + 1)
        sequence.stage = Stage.RUNNING
        sequence.slot = slot
        self._running.append(sequence)

    def _swap_in(self, sequence: Sequence, slot: int) -> None:
        host_blocks = tuple(sequence.host_blocks)
        sequence.host_blocks = []
        if self._plan.shares_blocks:
            blocks = tuple(sequence.blocks[: len(host_blocks)])
            self._moves.append(SwapIn(sequence.request.id, slot, sequence.num_computed, host_blocks, blocks))
            self.host_blocks.release(host_blocks)  # no cache writes them, and moves keep their order
        else:
            self._moves.append(SwapIn(sequence.request.id, slot, sequence.num_computed, host_blocks))
            self.reuse.release_after_step(host_blocks)

    def _has_host_room(self, count: int) -> bool:
        return self.host_blocks.num_free >= count if self._plan.shares_blocks else self.reuse.make_room(count)

    def _preempt(self, sequence: Sequence) -> None:
        """Copy a running sequence out, or drop what it has computed, and queue it again."""
        assert sequence.slot is not None
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.reuse.abandon(sequence)
        count = -(-sequence.num_computed // self._plan.block_size)
        if count > 0 and self._has_host_room(count):
            slot = sequence.slot
            sequence.host_blocks = self.host_blocks.allocate(count)
            blocks = tuple(sequence.blocks[:count]) if self._plan.shares_blocks else ()
            self._moves.append(
                SwapOut(sequence.request.id, slot, sequence.num_computed, tuple(sequence.host_blocks), blocks)
            )
            self._leave_row(sequence, release=False)
            sequence.stage = Stage.SWAPPED
        else:
            self._leave_row(sequence)
            sequence.num_computed = sequence.num_saved = 0
            sequence.stage = Stage.WAITING
        self._queue.add(sequence)

    def _add(self, move: Move | None) -> None:
        if move is not None:
            self._moves.append(move)

    def _leave_row(self, sequence: Sequence, *, release: bool = True) -> None:
        assert sequence.slot is not None
        if release:
            self._moves.append(ReleaseRow(sequence.slot))
        self._free_slots.append(sequence.slot)
        self.blocks.release(sequence.blocks)
        self._running.remove(sequence)
        sequence.blocks = []
        sequence.slot = None


def _rank(sequence: Sequence) -> tuple[int, int]:
    return -sequence.request.priority, sequence.arrival
