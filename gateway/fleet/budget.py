"""The memory that the models of a fleet share, while they come and go: who has how much of it, and who gives way.

Belongs to the event loop, as the fleet does. Knows no names and loads nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ortserve.gateway.fleet.member import Member
from ortserve.gateway.fleet.memory import Allotment, NoRoomError, allot
from ortserve.gateway.fleet.prepared import Prepared
from ortserve.gateway.logs import log
from ortserve.runtime.sizes import shown_bytes


class Budget:
    """Bytes for all members together; those that are to take another's place count beside it until they have."""

    def __init__(self, memory: int, members: Sequence[Member]) -> None:
        """`members` is read whenever it matters: it is the fleet's own list."""
        self.memory = memory
        self.arriving: list[Member] = []  # that will take another's place
        self._members = members
        self._making_room = asyncio.Lock()

    @property
    def num_bytes(self) -> int:
        """Set aside for models."""
        return sum(member.num_bytes for member in (*self._members, *self.arriving))

    def allot(self, prepared: Prepared, place_of: Member) -> Allotment:
        """What a model gets that takes the place of a member, or is it. Raises `MemoryBudgetError`."""
        return allot(self.memory, prepared, self._others(place_of))

    def has_room(self, allotment: Allotment, instead_of: Member | None = None) -> bool:
        """Whether that much is free, once a member has let go of what it has."""
        freed = 0 if instead_of is None else instead_of.num_bytes
        return self.num_bytes - freed + allotment.num_bytes <= self.memory

    async def make_room(self, member: Member, prepared: Prepared, *, may_evict: bool, drain_s: float) -> Allotment:
        """Memory that is free for it. Idle models that are not pinned give way, the least recently used one first.

        Raises `MemoryBudgetError`; `NoRoomError` where it would fit but for those that cannot give way.
        """
        async with self._making_room:
            allotment = self.allot(prepared, member)
            while not self.has_room(allotment, member):
                victims = [one for one in self._members if one.is_idle and not one.spec.pinned]
                if not (victims and may_evict):
                    raise self.no_room(member, allotment)
                victim = min(victims, key=_last_used)
                log().info("model_gives_way", model=victim.name, to=member.name)
                async with victim.lock:
                    await victim.close(drain_s)
            member.allotment = allotment  # at once: nobody else may count on it
            return allotment

    def no_room(self, member: Member, allotment: Allotment) -> NoRoomError:
        """Says who holds what."""
        held = ", ".join(f"{one.name} {shown_bytes(one.num_bytes)}" for one in self._members if one.num_bytes)
        return NoRoomError(
            f"{member.name} needs {shown_bytes(allotment.num_bytes)} of the {shown_bytes(self.memory)} for models,"
            f" and those that are loaded cannot give way ({held}): unload one, lower --kv-memory or"
            " --prompt-cache-memory, or raise --model-memory"
        )

    def _others(self, member: Member) -> list[Prepared]:
        others = sorted((one for one in self._members if one is not member), key=lambda one: not one.spec.preload)
        return [one.prepared for one in others if one.prepared is not None]


def _last_used(member: Member) -> float:
    assert member.instance is not None
    return member.instance.last_used
