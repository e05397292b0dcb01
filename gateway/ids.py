"""Identifiers of what this server makes: a prefix and random digits. Knows no object."""

from __future__ import annotations

import secrets


def new_id(prefix: str) -> str:
    """A unique id such as resp_...; nobody can guess another one's."""
    return f"{prefix}_{secrets.token_hex(24)}"
