"""A page of objects as a list. Knows no object."""

from __future__ import annotations

import msgspec


class ListReply(msgspec.Struct, frozen=True):
    """A page of objects. Clients' types demand strings even where nothing is first or last."""

    data: list[msgspec.Raw]
    first_id: str
    last_id: str
    has_more: bool
    object: str = "list"
