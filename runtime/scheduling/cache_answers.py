"""What a prompt cache has answered, checked before it is believed: it may be a stranger's. Knows no engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ortserve.plugins.api import Part

Answer = TypeVar("Answer")


class BrokenLawError(Exception):
    """What a cache has answered cannot be."""


def of_type(kind: type[Answer], answer: object) -> Answer:
    """The answer. Raises `BrokenLawError` for one of another kind."""
    if not isinstance(answer, kind):
        raise BrokenLawError(f"it returned {type(answer).__name__} where {kind.__name__} is due")
    return answer


def refused_blocks(blocks: Iterable[int], part: Part) -> tuple[int, ...]:
    """Those of a part that the cache does not want. Raises `BrokenLawError` for others."""
    refused = tuple(blocks)
    if len(set(refused)) < len(refused) or not set(refused) <= set(part.blocks):
        raise BrokenLawError("it refused blocks that it was not offered, or one of them twice")
    return refused
