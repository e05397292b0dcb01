"""Argument schemas without a word about other properties, read as having none. Knows no grammar.

A schema that is silent allows any property, and a model held to it by a grammar may go on inventing them for ever. What
a closed schema allows, the open one allows too, so nothing becomes invalid.
"""

from __future__ import annotations

from collections.abc import Mapping

# Beside these an object's properties are not all in one place, or what is allowed depends on what is not.
_ENTANGLED = frozenset(
    ["allOf", "oneOf", "not", "if", "dependentSchemas", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef"]
)
_SCHEMA = frozenset(["items", "contains"])
_SCHEMAS = frozenset(["properties", "$defs", "definitions", "patternProperties"])
_OPEN = frozenset(["additionalProperties", "patternProperties", "anyOf", "$ref"])


def closed(schema: Mapping[str, object]) -> Mapping[str, object]:
    """The schema with `additionalProperties: false` wherever properties are listed and nothing is said of others.

    Unchanged where that could contradict another part of it: entangled keywords, or required names that are not listed.
    """
    return schema if _is_entangled(schema) else _closed(schema)


def _closed(schema: Mapping[str, object]) -> dict[str, object]:
    result = {key: _below(key, value) for key, value in schema.items()}
    properties, required = schema.get("properties"), schema.get("required", [])
    is_listed = (
        isinstance(properties, dict) and isinstance(required, list) and set(map(str, required)) <= set(properties)
    )
    if is_listed and not _OPEN & schema.keys():
        result["additionalProperties"] = False
    return result


def _below(key: str, value: object) -> object:
    if key in _SCHEMA and isinstance(value, dict):
        return _closed(value)
    if key in _SCHEMAS and isinstance(value, dict):
        return {name: _closed(one) if isinstance(one, dict) else one for name, one in value.items()}
    if key in ("anyOf", "prefixItems") and isinstance(value, list):
        return [_closed(one) if isinstance(one, dict) else one for one in value]
    return value


def _is_entangled(value: object) -> bool:
    if isinstance(value, dict):
        return bool(_ENTANGLED & value.keys()) or any(_is_entangled(one) for one in value.values())
    return isinstance(value, list) and any(_is_entangled(one) for one in value)
