"""Bodies of /admin/models, field by field. Know no fleet."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.gateway.errors import bad_request
from ortserve.gateway.schema.fields import Fields

MAX_NAME = 200  # characters
MAX_ALIASES = 16
MAX_DRAIN_S = 3600.0


@dataclass(frozen=True, slots=True)
class LoadCall:
    """Exactly one of `model`, which the server knows, and `source`, which it does not, is set."""

    model: str | None
    source: str | None
    name: str | None
    aliases: tuple[str, ...]
    is_pinned: bool
    waits: bool


@dataclass(frozen=True, slots=True)
class UnloadCall:
    """`drain_s` None: the server's own bound."""

    model: str
    drain_s: float | None


@dataclass(frozen=True, slots=True)
class SwapCall:
    """Put what `source` holds in the place of `model`."""

    model: str
    source: str
    drain_s: float | None


def read_load(fields: Fields) -> LoadCall:
    """Raises `ApiError` (400)."""
    model = fields.string("model", max_length=MAX_NAME)
    source = fields.string("source")
    name, aliases = fields.string("name", max_length=MAX_NAME), _aliases(fields)
    is_pinned, waits = fields.boolean("pinned"), fields.boolean("wait", default=True)
    if (model is None) == (source is None):
        message = "Give one of 'model', a name that GET /admin/models lists, and 'source', a folder or hub id."
        raise bad_request(message, param="model", code="invalid_value")
    for word, is_given in (("name", name is not None), ("aliases", bool(aliases)), ("pinned", is_pinned)):
        if model is not None and is_given:
            message = f"Invalid '{word}': it is for a new 'source', and a known model has its own."
            raise bad_request(message, param=word, code="invalid_value")
    return LoadCall(model, source, name, aliases, is_pinned, waits)


def read_unload(fields: Fields) -> UnloadCall:
    """Raises `ApiError` (400)."""
    return UnloadCall(fields.required_string("model"), fields.number("drain", 0.0, MAX_DRAIN_S))


def read_swap(fields: Fields) -> SwapCall:
    """Raises `ApiError` (400)."""
    return SwapCall(
        fields.required_string("model"), fields.required_string("source"), fields.number("drain", 0.0, MAX_DRAIN_S)
    )


def _aliases(fields: Fields) -> tuple[str, ...]:
    names = fields.array("aliases", "an array of strings") or []
    if len(names) > MAX_ALIASES or not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in names):
        message = f"Invalid 'aliases': expected at most {MAX_ALIASES} strings of 1 to {MAX_NAME} characters."
        raise bad_request(message, param="aliases", code="invalid_value")
    return tuple(map(str, names))
