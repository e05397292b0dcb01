"""What is said of a model to operators, callers and metrics: a copy that stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from ortserve.gateway.fleet.instance import Service
from ortserve.gateway.fleet.member import Member, Phase
from ortserve.gateway.fleet.prepared import Prepared


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model now. `prepared` None: its manifest has not been read; `service` None: it is not loaded."""

    name: str
    names: tuple[str, ...]  # all of them, `name` first
    source: str | None  # None: the bundled model
    phase: Phase
    phase_s: float  # seconds in it
    error: str | None
    prepared: Prepared | None
    service: Service | None
    num_bytes: int  # set aside for it
    num_users: int
    idle_s: float | None  # since it was last used; None: not loaded, or in use
    load_s: float | None
    num_restarts: int
    is_hung: bool
    is_on_demand: bool
    is_pinned: bool

    @property
    def can_serve(self) -> bool:
        """A request is answered, now or after loading it."""
        if self.phase == "unloaded":
            return self.is_on_demand
        return self.phase == "ready" and self.service is not None and self.service.driver.healthy


def needs_restart(states: Sequence[ModelState]) -> bool:
    """Only a new process helps: an engine hangs, or models have failed for good and none is left that could answer."""
    is_over = all(state.phase in ("failed", "unloaded") and not state.can_serve for state in states)
    return any(state.is_hung for state in states) or (is_over and any(state.phase == "failed" for state in states))


def state_of(member: Member, names: tuple[str, ...]) -> ModelState:
    """Read it off; `names` are those that it answers to."""
    instance, now_s = member.instance, monotonic()
    is_idle = instance is not None and not instance.num_users
    return ModelState(
        name=member.name,
        names=names,
        source=member.spec.source,
        phase=member.phase,
        phase_s=now_s - member.since_s,
        error=member.error,
        prepared=member.prepared,
        service=None if instance is None else instance.service,
        num_bytes=member.num_bytes,
        num_users=0 if instance is None else instance.num_users,
        idle_s=now_s - instance.last_used if instance is not None and is_idle else None,
        load_s=member.load_s,
        num_restarts=member.num_restarts,
        is_hung=member.is_hung,
        is_on_demand=member.is_on_demand,
        is_pinned=member.spec.pinned,
    )
