"""The options of drafters as they are written, and the counts they become. Knows no drafter.

A drafter declares its options as a frozen dataclass of counts with defaults; every count is at least 1.
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
    known = [field.name for field in fields(defaults)]
    counts: dict[str, int] = {}
    for name, text in written.items():
        if name not in known:
            raise ValueError(f"the drafter {drafter} has no option {name}: it knows {', '.join(known)}")
        counts[name] = _read_count(drafter, name, text)
    return replace(defaults, **counts)


def _read_count(drafter: str, name: str, text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"{name} of the drafter {drafter} is {text!r}: give a whole number from 1 up")
    return count
