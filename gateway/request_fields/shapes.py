"""JSON Schema fragments for field tables, as short as tables need them. Knows no field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Shape: TypeAlias = Mapping[str, object]  # a JSON Schema (2020-12)

ANYTHING: Shape = {}
STRING: Shape = {"type": "string"}
BOOLEAN: Shape = {"type": "boolean"}
OBJECT: Shape = {"type": "object"}  # its properties are the field's children in the table; without any, it is free


def integer(minimum: int | None = None, maximum: int | None = None) -> Shape:
    """A whole number in [minimum, maximum]."""
    return _bounded("integer", minimum, maximum)


def number(minimum: float | None = None, maximum: float | None = None) -> Shape:
    """A number in [minimum, maximum]."""
    return _bounded("number", minimum, maximum)


def string(max_length: int) -> Shape:
    """A string of at most so many characters."""
    return {"type": "string", "maxLength": max_length}


def words(*supported: str) -> Shape:
    """One of a few words."""
    return {"type": "string", "enum": list(supported)}


def array(items: Shape, *, min_items: int | None = None, max_items: int | None = None) -> Shape:
    """A list of `items`; elements that are objects have the field's children as properties."""
    shape: dict[str, object] = {"type": "array", "items": items}
    if min_items is not None:
        shape["minItems"] = min_items
    if max_items is not None:
        shape["maxItems"] = max_items
    return shape


def mapping(values: Shape) -> Shape:
    """An object with any keys."""
    return {"type": "object", "additionalProperties": values}


def one_of(*shapes: Shape) -> Shape:
    """Any of several shapes."""
    return {"anyOf": list(shapes)}


def _bounded(type_: str, minimum: float | None, maximum: float | None) -> Shape:
    shape: dict[str, object] = {"type": type_}
    if minimum is not None:
        shape["minimum"] = minimum
    if maximum is not None:
        shape["maximum"] = maximum
    return shape
