"""Bodies of /admin/cache/..., field by field."""

from __future__ import annotations

from dataclasses import replace

from ortserve.gateway.contract.chat import MESSAGES
from ortserve.gateway.contract.rules import extension
from ortserve.gateway.contract.sampling import TOKEN_ID
from ortserve.gateway.contract.shapes import STRING, array, one_of
from ortserve.gateway.contract.table import FieldTable

KEY = extension("api_key", STRING, "whose prefixes are meant")
SALT = extension("cache_salt", STRING)

WARM = FieldTable(
    (
        *(replace(rule, is_required=False) if rule.path == "messages" else rule for rule in MESSAGES),
        extension("prompt", one_of(STRING, array(TOKEN_ID)), "instead of `messages`"),
        extension("ttl", STRING, "whole s, m or h up to 24h; absent: as long as the server runs"),
        KEY,
        SALT,
    )
)
CLEAR = FieldTable((KEY, SALT))
