"""Files as JSON objects. Knows no disk."""

from __future__ import annotations

from typing import Literal

import msgspec


class FileReply(msgspec.Struct, frozen=True):
    """A file without its bytes."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None
    status: Literal["processed"] = "processed"
    object: Literal["file"] = "file"
