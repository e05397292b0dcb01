"""Models as their administrator sees them. Knows no fleet."""

from __future__ import annotations

from typing import Literal

import msgspec


class ManagedModel(msgspec.Struct, frozen=True):
    """One model as its administrator sees it. Sizes are bytes, times seconds."""

    id: str
    aliases: list[str]  # further names it answers to
    task: str | None  # None: nothing is known of it yet
    state: str
    state_seconds: float
    error: str | None
    source: str | None  # None: the bundled model
    memory_bytes: int  # set aside for it
    requests: int  # that use it now
    idle_seconds: float | None
    load_seconds: float | None  # how long it took the last time
    restarts: int  # after its engine had failed
    on_demand: bool  # a request for it loads it
    pinned: bool  # never gives way to another
    object: Literal["admin.model"] = "admin.model"


class ManagedModels(msgspec.Struct, frozen=True):
    """The answer to GET /admin/models."""

    data: list[ManagedModel]
    memory_bytes: int  # for all models together
    used_bytes: int  # set aside now
    object: Literal["list"] = "list"
