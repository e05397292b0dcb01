"""Errors on their way between processes: they arrive as what they were. Knows no message and no socket."""

from __future__ import annotations

from typing import Any

from ortserve.runtime import errors
from ortserve.runtime.errors import EngineError, OrtserveError
from ortserve.runtime.workers.messages import CrossedError

_KINDS: dict[str, type[OrtserveError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, OrtserveError)
}
_PLAIN = (str, int, float, bool, type(None), tuple)


def departing(error: BaseException) -> CrossedError:
    """An error as values."""
    facts = {name: value for name, value in vars(error).items() if isinstance(value, _PLAIN)}
    return CrossedError(tuple(kind.__name__ for kind in type(error).__mro__), str(error), facts)


def arrived(crossed: CrossedError) -> OrtserveError:
    """The same error: of its class, with its attributes. One of a kind that is not ours is an `EngineError`."""
    kind = next((_KINDS[name] for name in crossed.names if name in _KINDS), None)
    if kind is None:
        return EngineError(f"{crossed.names[0]}: {crossed.message}")
    error = kind.__new__(kind)
    Exception.__init__(error, crossed.message)
    for name, value in crossed.facts.items():
        setattr(error, name, _tuples(value))
    return error


def _tuples(value: Any) -> Any:
    """Arrays of MessagePack arrive as lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
