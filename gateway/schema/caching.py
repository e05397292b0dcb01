"""What a request says about prompt caching, read with OpenAI's names and errors. Knows no token and no cache."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ortserve.gateway.errors import bad_request, unsupported_parameter
from ortserve.gateway.schema.fields import Fields, missing
from ortserve.plugins.api import CacheMode

MODES = {"implicit": CacheMode.AUTO, "auto": CacheMode.AUTO, "explicit": CacheMode.EXPLICIT, "off": CacheMode.OFF}
IN_MEMORY = "in_memory"
RETENTIONS = (IN_MEMORY, "24h")
UNITS_S = {"s": 1, "m": 60, "h": 3600}
MAX_TTL_S = 24 * 3600
MAX_KEY_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class CacheWish:
    """The request's own words; `ttl_s` is the least lifetime of every breakpoint that names none.

    `is_durable` is false for a prompt that may be kept in memory only.
    """

    mode: CacheMode = CacheMode.AUTO
    ttl_s: float | None = None
    affinity: str | None = None
    salt: str | None = None
    is_durable: bool = True


@dataclass(frozen=True, slots=True)
class Mark:
    """A reusable prefix ends after so many characters of a message's content."""

    num_characters: int
    ttl_s: float | None


def read_cache_wish(fields: Fields) -> CacheWish:
    """All of it. A retention of `in_memory` keeps a prompt off the disk; `24h` changes nothing."""
    is_durable = fields.choice("prompt_cache_retention", RETENTIONS) != IN_MEMORY
    salt = read_cache_salt(fields)
    affinity = fields.string("prompt_cache_key", max_length=MAX_KEY_LENGTH) or None
    options = fields.object("prompt_cache_options")
    if options is None:
        return CacheWish(affinity=affinity, salt=salt, is_durable=is_durable)
    if options.boolean("prewarm"):
        raise unsupported_parameter(options.name("prewarm"), "is not supported: use `ortserve cache warm`.")
    mode = options.choice("mode", tuple(MODES))
    return CacheWish(CacheMode.AUTO if mode is None else MODES[mode], read_ttl(options), affinity, salt, is_durable)


def read_cache_salt(fields: Fields) -> str | None:
    """`cache_salt`, which divides a tenant's prefixes further."""
    salt = fields.string("cache_salt", max_length=MAX_KEY_LENGTH)
    if salt == "":
        raise bad_request("Invalid 'cache_salt': expected a non-empty string.", param="cache_salt", code="empty_string")
    return salt


def read_mark(part: Fields, num_characters: int) -> Mark | None:
    """`prompt_cache_breakpoint` of a content part that ends after `num_characters`; None when it has none."""
    point = part.object("prompt_cache_breakpoint")
    if point is None:
        return None
    if point.choice("mode", ("explicit",)) is None:
        raise missing(point.name("mode"))
    return Mark(num_characters, read_ttl(point))


def read_ttl(fields: Fields) -> float | None:
    """`ttl` in seconds: a whole number with s, m or h, at most 24h."""
    text = fields.string("ttl")
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smh])", text)
    seconds = int(match[1]) * UNITS_S[match[2]] if match else 0
    if not 0 < seconds <= MAX_TTL_S:
        message = (
            f"Invalid value: '{text}'. Supported values are whole seconds, minutes or hours up to a day,"
            " such as '30m' and '12h'."
        )
        raise bad_request(message, param=fields.name("ttl"), code="invalid_value")
    return float(seconds)
