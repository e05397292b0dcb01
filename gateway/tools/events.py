"""What reading a reply yields, in order. Knows no format and no wire format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the reasoning channel."""

    text: str


@dataclass(frozen=True, slots=True)
class ThoughtEnded:
    """The reasoning channel is closed. `end`: characters of the whole reply before what follows."""

    end: int


@dataclass(frozen=True, slots=True)
class Said:
    """Text for the reader, as it was written. `start`: characters of the whole reply before it."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of the tool with this name. Its arguments follow, then `CallEnded` unless the reply was cut."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """Some of the JSON text of the arguments."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is complete, or the reply has ended within it."""


Event = Thought | ThoughtEnded | Said | CallBegun | CallArguments | CallEnded
