"""Bodies of /admin/..., field by field."""

from __future__ import annotations

from dataclasses import replace

from ortserve.gateway.request_fields.chat import MESSAGES
from ortserve.gateway.request_fields.rules import extension
from ortserve.gateway.request_fields.sampling import TOKEN_ID
from ortserve.gateway.request_fields.shapes import BOOLEAN, STRING, array, number, one_of, string
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.admin_models import MAX_ALIASES, MAX_DRAIN_S, MAX_NAME

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
DRAIN = extension("drain", number(0, MAX_DRAIN_S), "seconds for what runs (`--drain`)")
LOAD = FieldTable(
    (
        extension("model", string(MAX_NAME), "one that `GET /admin/models` lists"),
        extension("source", STRING, "another one instead: a folder or hub id, as `ortserve serve` takes them"),
        extension("name", string(MAX_NAME), "of a `source`; absent: its own"),
        extension("aliases", array(string(MAX_NAME), max_items=MAX_ALIASES), "further names of a `source`"),
        extension("pinned", BOOLEAN, "a `source` that never gives way to another model"),
        extension("wait", BOOLEAN, "false: answer at once"),
    )
)
UNLOAD = FieldTable((replace(extension("model", STRING), is_required=True), DRAIN))
SWAP = FieldTable(
    (
        replace(extension("model", STRING, "whose names go over"), is_required=True),
        replace(extension("source", STRING, "what comes in its place"), is_required=True),
        DRAIN,
    )
)
