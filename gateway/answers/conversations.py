"""Conversations as JSON objects. Knows no store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec


class ConversationReply(msgspec.Struct, frozen=True):
    """A conversation without its items."""

    id: str
    created_at: int
    metadata: Mapping[str, str]
    object: Literal["conversation"] = "conversation"
