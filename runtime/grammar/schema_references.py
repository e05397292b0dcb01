"""References of a JSON schema that lead back to themselves, for errors that name the keyword. Knows no library."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote


def endless_reference(schema: object) -> str | None:
    """What is wrong with a `$ref` that describes no value because it only leads back to itself; None without one."""
    for reference in _references(schema):
        seen: list[str] = []
        target: object = {"$ref": reference}
        while isinstance(target, dict) and isinstance(target.get("$ref"), str):
            name = target["$ref"]
            if name in seen:
                return f"the keyword '$ref' leads back to itself: {' -> '.join((*seen, name))}"
            seen.append(name)
            target = resolved(schema, name)
    return None


def _references(schema: object) -> Iterator[str]:
    """Without recursion: a schema may be deep."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def resolved(schema: object, reference: str) -> object:
    """What a local reference points to (RFC 6901); None for any other, and for one that points nowhere."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    target = schema
    for part in unquote(reference).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict):
            target = target.get(name)
        elif isinstance(target, list) and name.isdigit() and int(name) < len(target):
            target = target[int(name)]
        else:
            return None
    return target
