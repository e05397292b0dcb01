"""Checks the laws of blocks, rows and counters on a scheduler between steps. Changes nothing; tests call it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Values

from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.scheduling.scheduler import Scheduler
from ortserve.runtime.sequence import Sequence, Stage


def audit(scheduler: Scheduler, plan: EnginePlan, *, outside: Values[int] = ()) -> list[str]:
    """Every violated law as one line; empty when all hold. `outside`: blocks whose holder is no sequence."""
    sequences = list(scheduler.sequences)
    violations = [line for sequence in sequences for line in _audit_sequence(sequence, plan)]
    placement = scheduler.placement
    cached = list(placement.reuse.held())
    resident, on_host = (cached, []) if plan.shares_blocks else ([], cached)
    for name, pool, held in (
        ("blocks", placement.blocks, Counter([*outside, *resident, *(block for s in sequences for block in s.blocks)])),
        (
            "host blocks",
            placement.host_blocks,
            Counter([*on_host, *(block for s in sequences for block in s.host_blocks)]),
        ),
    ):
        references = pool.references()
        expected = tuple(held[block] for block in range(pool.num_blocks))
        if references != expected:
            violations.append(f"{name}: reference counts {references} differ from the holders {expected}")
        if pool.num_free != references.count(0):
            violations.append(f"{name}: {pool.num_free} on the free list, {references.count(0)} without holder")
    claimed, owned = sorted(placement.reuse.cache.held()), sorted(placement.reuse.owned)
    if claimed != owned:
        violations.append(f"prompt cache: it says it holds {claimed}, it was given {owned}")
    slots = [sequence.slot for sequence in sequences if sequence.slot is not None]
    if sorted([*slots, *placement.free_slots]) != list(range(plan.num_rows)):
        violations.append(f"rows: {slots} held and {placement.free_slots} free are not each row once")
    if plan.shares_blocks:
        violations += _audit_writable(sequences, placement.blocks.references(), plan.block_size)
    queued = {sequence.request.id for sequence in placement.queued}
    expected_queue = {sequence.request.id for sequence in sequences if sequence.stage is not Stage.RUNNING}
    if queued != expected_queue:
        violations.append(f"queue: holds {queued}, expected {expected_queue}")
    return violations


def _audit_sequence(sequence: Sequence, plan: EnginePlan) -> list[str]:
    name = sequence.request.id
    count = -(-sequence.num_computed // plan.block_size)
    laws = {
        "0 <= num_computed <= len(tokens)": 0 <= sequence.num_computed <= len(sequence.tokens),
        "len(tokens) <= max_context": len(sequence.tokens) <= plan.max_context,
        "tokens begin with the prompt": tuple(sequence.tokens[: sequence.num_prompt_tokens]) == sequence.request.prompt,
        "a row exactly while running": (sequence.slot is not None) == (sequence.stage is Stage.RUNNING),
        "blocks exactly while running": bool(sequence.blocks) == (sequence.stage is Stage.RUNNING),
        "blocks cover what is computed": sequence.stage is not Stage.RUNNING or len(sequence.blocks) >= count,
        "host blocks cover what is computed": len(sequence.host_blocks)
        == (count if sequence.stage is Stage.SWAPPED else 0),
        "nothing computed while waiting": sequence.stage is not Stage.WAITING or sequence.num_computed == 0,
        "a ticket only while running": sequence.ticket is None or sequence.stage is Stage.RUNNING,
        "saved only what is computed": sequence.num_saved <= sequence.num_computed,
    }
    return [f"{name}: {law} does not hold" for law, holds in laws.items() if not holds]


def _audit_writable(sequences: Values[Sequence], references: tuple[int, ...], block_size: int) -> list[str]:
    """A block with more than one holder is never written: what a sequence writes next lies in blocks of its own."""
    return [
        f"{sequence.request.id}: block {block} would be written and has {references[block]} holders"
        for sequence in sequences
        for block in sequence.blocks[sequence.num_computed // block_size :]
        if references[block] != 1
    ]
