"""The options of drafters as they are written, and the counts they become. Knows no drafter.

A drafter declares its options as a frozen dataclass of counts with defaults; every count is at least 1,
or what its field's metadata call `least`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Options = TypeVar("Options", bound=DataclassInstance)


def read_counts(drafter: str, defaults: Options, written: Mapping[str, str]) -> Options:
    """`defaults` with what is written. Raises `ValueError`, in one line, for an unknown name or an unreadable value."""
    known = {field.name: int(field.metadata.get("least", 1)) for field in fields(defaults)}
    counts: dict[str, int] = {}
    for name, text in written.items():
        if name not in known:
            raise ValueError(f"the drafter {drafter} has no option {name}: it knows {', '.join(known)}")
        counts[name] = _read_count(drafter, name, text, known[name])
    return replace(defaults, **counts)


def _read_count(drafter: str, name: str, text: str, least: int) -> int:
    try:
        count = int(text)
    except ValueError:
        count = least - 1
    if count < least:
        raise ValueError(f"{name} of the drafter {drafter} is {text!r}: give a whole number from {least} up")
    return count
