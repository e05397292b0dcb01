"""Response structs as JSON Schemas: every field a reply has, named once. Knows no endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from ortserve.gateway.request_fields.shapes import ANYTHING, Shape

PLAIN: Mapping[object, Shape] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
    bytes: {"type": "string", "contentEncoding": "base64"},
}


class ReplyShapes:
    """Collects the schemas of structs and of whatever they hold."""

    def __init__(self) -> None:
        self.components: dict[str, Shape] = {}

    def of(self, type_: Any) -> Shape:
        """The schema of values of a type; structs are referred to by name."""
        if type_ in PLAIN:
            return PLAIN[type_]
        if get_origin(type_) is not None:
            return self._generic(get_origin(type_), get_args(type_))
        if isinstance(type_, type) and issubclass(type_, Enum):
            return {"enum": [member.value for member in type_]}
        if isinstance(type_, type) and (issubclass(type_, msgspec.Struct) or is_dataclass(type_)):
            return self._reference(type_)
        return ANYTHING

    def _generic(self, origin: Any, arguments: tuple[Any, ...]) -> Shape:
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin in (Union, UnionType):
            options = [self.of(argument) for argument in arguments if argument is not msgspec.UnsetType]
            return options[0] if len(options) == 1 else {"anyOf": options}
        if issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        if issubclass(origin, Sequence):
            return {"type": "array", "items": self.of(arguments[0])}
        return ANYTHING

    def _reference(self, type_: type) -> Shape:
        name = type_.__name__
        if name not in self.components:
            self.components[name] = {}  # it may hold itself
            self.components[name] = self._object(type_)
        return {"$ref": f"#/components/schemas/{name}"}

    def _object(self, type_: type) -> Shape:
        hints = get_type_hints(type_)
        names: Sequence[str]
        if issubclass(type_, msgspec.Struct):
            names = type_.__struct_fields__
        else:
            assert is_dataclass(type_)
            names = [field.name for field in dataclass_fields(type_)]
        shape: dict[str, object] = {
            "type": "object",
            "properties": {name: self.of(hints[name]) for name in names},
        }
        if type_.__doc__:
            shape["description"] = type_.__doc__.split("\n")[0]
        if not issubclass(type_, msgspec.Struct) or not type_.__struct_config__.omit_defaults:
            shape["required"] = [name for name in names if msgspec.UnsetType not in get_args(hints[name])]
        return shape
