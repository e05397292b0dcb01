"""What a server and its engine processes say to each other, in MessagePack. Knows no socket.

A process begins with `HELLO`; the server answers with `Start`, and gets `Ready` or `NotStarted`. After that either side
speaks when it likes. One `Stepped` has all that a step has added.
"""

from __future__ import annotations

from collections import Counter
from importlib import metadata
from typing import Any, TypeAlias, get_origin

import msgspec

from ortserve.plugins.api import CacheStats, Entry
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import EngineStats
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Delta, Grammar, Request
from ortserve.runtime.scheduling.backlog import Progress
from ortserve.runtime.scheduling.fair_order import FairOrder
from ortserve.runtime.speculation.stats import DraftStats

PROTOCOL = 3  # of these messages and of the values in them
HELLO = f"ortserve {metadata.version('ortserve')} worker {PROTOCOL}".encode()


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Written as an array: its name, then its fields."""


class CrossedError(_Message, frozen=True):
    """An error as it travels: the names of its class and of those above it, its text, and its attributes."""

    names: tuple[str, ...]
    message: str
    facts: dict[str, Any] = {}


# To the process.


class Start(_Message, frozen=True):
    """Open the model. `opener` is module:function, of folder and configuration, and returns a `Driver`."""

    folder: str
    config: EngineConfig
    digest: str  # of the model as the server has read it
    opener: str
    import_path: tuple[str, ...]  # where the server finds its modules


class Submit(_Message, frozen=True):
    """`Driver.submit`; only a refusal is answered."""

    request: Request


class Cancel(_Message, frozen=True):
    """`Driver.cancel`."""

    request_id: str


class Prepare(_Message, frozen=True):
    """`Driver.prepare`."""

    ticket: int
    grammar: Grammar


class ListEntries(_Message, frozen=True):
    """`Driver.cache_entries`."""

    ticket: int


class Pin(_Message, frozen=True):
    """`Driver.cache_pin`."""

    ticket: int
    tokens: tuple[int, ...]
    salt: bytes
    ttl_s: float


class Clear(_Message, frozen=True):
    """`Driver.cache_clear`."""

    ticket: int
    salt: bytes | None


class Close(_Message, frozen=True):
    """`Driver.close`; the process ends after it."""

    drain_s: float


# From the process.


class Ready(_Message, frozen=True):
    """The engine runs."""

    plan: EnginePlan


class NotStarted(_Message, frozen=True):
    """It cannot; the process ends."""

    error: CrossedError


class Stepped(_Message, frozen=True):
    """What one step has added, and where it has left the engine. What is None is as before."""

    deltas: tuple[Delta, ...]
    stats: EngineStats
    progress: Progress | None = None
    cache: CacheStats | None = None
    drafts: DraftStats | None = None


class Refused(_Message, frozen=True):
    """A request that the engine does not take."""

    request_id: str
    error: CrossedError


class Answered(_Message, frozen=True):
    """To the message of that ticket: a number, entries, or an error."""

    ticket: int
    number: int = 0
    entries: tuple[Entry, ...] = ()
    error: CrossedError | None = None


class Logged(_Message, frozen=True):
    """A line for the server's log."""

    level: str
    event: str
    fields: dict[str, Any]


class Alive(_Message, frozen=True):
    """The process runs, whether it has anything to say or not: one that does not say even this has been stopped."""


class Ended(_Message, frozen=True):
    """The engine has been closed, or has died of an error; the process ends."""

    error: CrossedError | None = None


Command: TypeAlias = Submit | Cancel | Prepare | ListEntries | Pin | Clear | Close
Report: TypeAlias = Ready | NotStarted | Stepped | Refused | Answered | Logged | Alive | Ended


def _as_values(value: object) -> object:
    """What MessagePack has no word for. Of the typed fields only `FairOrder`; a line of the log may have anything."""
    return value.values() if isinstance(value, FairOrder) else str(value)


def _of_values(kind: type, value: Any) -> object:
    if kind is FairOrder:
        return FairOrder.of(*value)
    if get_origin(kind) is Counter:
        return Counter(value)
    raise NotImplementedError(kind)


encode = msgspec.msgpack.Encoder(enc_hook=_as_values).encode
decode_start = msgspec.msgpack.Decoder(Start).decode
decode_command = msgspec.msgpack.Decoder(Command, dec_hook=_of_values).decode
decode_report = msgspec.msgpack.Decoder(Report, dec_hook=_of_values).decode
