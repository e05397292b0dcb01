"""The answer to DELETE. Knows no object."""

from __future__ import annotations

import msgspec


class DeletedReply(msgspec.Struct, frozen=True):
    """What was deleted is gone."""

    id: str
    object: str
    deleted: bool = True
