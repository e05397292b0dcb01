"""Which name means which model, at one moment. Frozen once made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ortserve.gateway.directory import Directory, ServedModel
from ortserve.gateway.fleet.member import Member
from ortserve.runtime.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Roster:
    """Members, those that generate first, and what callers are shown of them."""

    members: tuple[Member, ...]
    directory: Directory

    def find(self, shown: str) -> Member:
        """The one that is shown by that name. Raises `StopIteration` for none."""
        return next(member for member in self.members if member.entry.names[0] == shown)

    def names(self, member: Member) -> tuple[str, ...]:
        """Those that it answers to, as they were published."""
        return self.directory.models[self.members.index(member)].names

    def known(self, name: str) -> Member | None:
        """The one that has that name among its names, as they were published."""
        shown = zip(self.members, self.directory.models, strict=True)
        return next((member for member, model in shown if name in model.names), None)


def roster_of(members: Iterable[Member]) -> Roster:
    """Raises `ConfigurationError` for two models of one name.

    A model that has been given a name answers to its own, too, unless another model is called so: of two exports of one
    checkpoint it is the first that does.
    """
    ordered = tuple(sorted(members, key=lambda one: one.entry.task != "generate"))
    taken: set[str] = set()
    for member in ordered:
        for name in member.entry.names:
            if name == member.entry.own_name:
                continue
            if name in taken:
                raise ConfigurationError(
                    f"two models are called {name}: give one of them another name, or export it under another one"
                )
            taken.add(name)
    return Roster(ordered, Directory(tuple(_undisputed(member.entry, taken) for member in ordered)))


def _undisputed(entry: ServedModel, taken: set[str]) -> ServedModel:
    own = entry.own_name
    if own in taken:
        return replace(entry, names=tuple(name for name in entry.names if name != own))
    if own is not None:
        taken.add(own)
    return entry
