"""What those are told who ask for a model that is not there: when waiting does not help, and when to come back."""

from __future__ import annotations

from time import monotonic

from ortserve.gateway.errors import ApiError, Problem, unavailable
from ortserve.gateway.fleet.member import Member


def check_wait(member: Member, *, is_closing: bool, is_started: bool) -> None:
    """Raise `ApiError` (503) when waiting for a model would not help, or not soon."""
    name = f"`{member.name}`"
    if is_closing:
        raise ApiError(unavailable("The server is shutting down."))
    if member.phase == "failed":
        raise ApiError(unavailable(f"The model {name} has failed, and is not loaded.", retry_after_s=60.0))
    if member.phase in ("unloaded", "draining") and not member.is_on_demand and not member.is_moving:
        raise ApiError(unavailable(f"The model {name} is not loaded.", retry_after_s=60.0))
    if not is_started and member.phase != "ready":
        raise ApiError(not_yet(member))


def not_yet(member: Member) -> Problem:
    """A 503 with how long it takes, by the last time it was loaded."""
    phase_s = monotonic() - member.since_s
    wait_s = 5.0 if member.load_s is None else max(member.load_s - phase_s, 1.0)
    return unavailable(f"The model `{member.name}` is {member.phase} (since {phase_s:.0f} s).", retry_after_s=wait_s)
