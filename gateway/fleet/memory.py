"""How the memory for models is divided: pure arithmetic over what manifests and plans say. Allocates nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ortserve.gateway.fleet.prepared import Prepared
from ortserve.runtime.errors import MemoryBudgetError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.plan import plan_engine
from ortserve.runtime.sizes import shown_bytes
from ortserve.runtime.workers.dividing import WEIGHT_FACTOR

SESSION_BYTES = 32 * 2**20  # of any session: graph, thread pool, tokenizer
SWAP_SHARE = 0.25  # of the planned memory, for what a model on a device swaps out to the host


class NoRoomError(MemoryBudgetError):
    """A model fits into the budget, but not beside those that are in use now."""


@dataclass(frozen=True, slots=True)
class Allotment:
    """Bytes of host memory of one model: what it is planned with beside its weights, and what it may come to hold."""

    planned_bytes: int
    num_bytes: int


def resident_weights(prepared: Prepared) -> int:
    """Bytes that its weights hold once loaded, in every process; nothing here for a model on a device."""
    if isinstance(prepared.manifest, Manifest) and prepared.manifest.kv.kind == "pages":
        return SESSION_BYTES
    num_engines = prepared.spec.options.engines or 1 if prepared.generates else 1  # an encoder has no engines
    return (int(prepared.weight_bytes * WEIGHT_FACTOR) + SESSION_BYTES) * num_engines


def planned_bytes(total: int, own: Prepared, others: Sequence[Prepared]) -> int:
    """What a model may take for caches when it shares `total` bytes with `others`, the most important ones first.

    Divided equally among as many models that generate as leave half of the memory to caches; the rest will have to take
    turns. Encoders keep nothing but their weights.
    """
    encoders = sum(resident_weights(other) for other in others if not other.generates and other.spec.preload)
    weights, count = resident_weights(own), 1
    for other in others:
        if other.generates and weights + resident_weights(other) <= (total - encoders) // 2:
            weights += resident_weights(other)
            count += 1
    return max((total - encoders - weights) // count, 0)


def allot(total: int, own: Prepared, others: Sequence[Prepared]) -> Allotment:
    """What a model gets. Raises `MemoryBudgetError` for one that does not fit into `total` bytes even alone."""
    weights = resident_weights(own)
    if weights > total:
        raise MemoryBudgetError(
            f"{own.name} needs {shown_bytes(weights)} for its weights, and models may take {shown_bytes(total)}"
            " together: raise --model-memory, or export a smaller precision"
        )
    if not isinstance(own.manifest, Manifest):
        return Allotment(0, weights)
    planned = planned_bytes(total, own, others)
    if own.manifest.kv.kind == "pages":  # its plan depends on a device's memory, which is asked for when it is loaded
        swap = own.spec.engine.swap_memory
        return Allotment(planned, weights + (int(planned * SWAP_SHARE) if swap is None else swap))
    draft = None if own.draft_manifest is None else own.draft_manifest.kv
    plan = plan_engine(own.manifest, own.spec.engine, available_bytes=planned, draft=draft)
    needed = weights + plan.host_bytes
    if needed > total:
        raise MemoryBudgetError(
            f"{own.name} needs {shown_bytes(needed)}, and models may take {shown_bytes(total)} together:"
            " raise --model-memory, or lower --kv-memory or --prompt-cache-memory"
        )
    return Allotment(planned, needed)
