"""JSON schemas that bound everything, so that even noise completes a reply. Knows no engine."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from hypothesis import strategies as st

from ortserve.runtime.request import Grammar, GrammarKind

Schema: TypeAlias = dict[str, Any]

_NAMES = st.sampled_from(["a", "id", "name", "first name", "x-y", "caf\u00e9", "Q1", 'an "odd" one'])
_TEXTS = st.sampled_from(["yes", "no", "left", "right", "", "caf\u00e9", "two words", 'a "quoted" one', "tab\there"])


def _strings() -> st.SearchStrategy[Schema]:
    bounded = st.tuples(st.integers(0, 3), st.integers(0, 6)).map(
        lambda bounds: {"type": "string", "minLength": bounds[0], "maxLength": bounds[0] + bounds[1]}
    )
    patterns = st.sampled_from(["^[a-f]{2,4}$", "^(red|green|blue)-[0-9]{1,3}$", "^\\d{4}-\\d{2}$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    )
    formats = st.sampled_from(["date", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name})
    return st.one_of(bounded, patterns, formats)  # not the format "time": its fraction of a second has no last digit


def _integers() -> st.SearchStrategy[Schema]:
    return st.tuples(st.integers(-1000, 1000), st.integers(0, 5000)).map(
        lambda bounds: {"type": "integer", "minimum": bounds[0], "maximum": bounds[0] + bounds[1]}
    )


def _numbers() -> st.SearchStrategy[Schema]:
    """Numbers have digits without end unless they are multiples of something."""
    return st.tuples(st.integers(-50, 50), st.integers(1, 100)).map(
        lambda bounds: {"type": "number", "minimum": bounds[0], "maximum": bounds[0] + bounds[1], "multipleOf": 0.25}
    )


def _choices() -> st.SearchStrategy[Schema]:
    enums = st.lists(st.one_of(_TEXTS, st.integers(-5, 5)), min_size=1, max_size=4, unique_by=repr).map(
        lambda values: {"enum": values}
    )
    constants = st.one_of(_TEXTS, st.booleans(), st.none(), st.integers(-9, 9)).map(lambda value: {"const": value})
    return st.one_of(enums, constants, st.just({"type": "boolean"}), st.just({"type": "null"}))


def _objects(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    def build(drawn: tuple[dict[str, Schema], set[str]]) -> Schema:
        properties, optional = drawn
        required = [name for name in properties if name not in optional]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    properties = st.dictionaries(_NAMES, inner, max_size=4)
    return st.tuples(properties, st.sets(_NAMES, max_size=2)).map(build)


def _arrays(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda drawn: {"type": "array", "items": drawn[0], "minItems": drawn[1], "maxItems": drawn[1] + drawn[2]}
    )


def _unions(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {"anyOf": schemas})


def schemas(most_bytes: int) -> st.SearchStrategy[Schema]:
    """Objects, arrays and unions of bounded values, some by reference, without free whitespace.

    Bounds within bounds still multiply: no valid reply is longer than `most_bytes`.
    """
    leaves = st.one_of(_strings(), _integers(), _numbers(), _choices())
    nested = st.recursive(
        leaves, lambda inner: st.one_of(_objects(inner), _arrays(inner), _unions(inner)), max_leaves=8
    )
    every = st.one_of(_objects(nested), nested, st.tuples(nested, nested).map(_with_references))
    return every.filter(lambda schema: longest(schema) <= most_bytes)


def longest(schema: Schema, definitions: dict[str, Schema] | None = None) -> int:
    """Most bytes of a valid reply, so at least as many as its tokens."""
    definitions = schema.get("$defs", definitions or {})
    if "$ref" in schema:
        return longest(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    if "anyOf" in schema:
        return max(longest(one, definitions) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return max(len(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "object":
            members = schema["properties"].items()
            return 2 + sum(len(json.dumps(name)) + 2 + longest(inner, definitions) for name, inner in members)
        case "array":
            return 2 + int(schema["maxItems"]) * (1 + longest(schema["items"], definitions))
        case "string":
            return 2 + (6 * int(schema["maxLength"]) if "maxLength" in schema else 36)  # an escape; a uuid
        case _:
            return 8


def _with_references(drawn: tuple[Schema, Schema]) -> Schema:
    """The same definition at two places."""
    return {
        "$defs": {"part": drawn[0]},
        "type": "object",
        "properties": {"one": {"$ref": "#/$defs/part"}, "two": {"anyOf": [{"$ref": "#/$defs/part"}, drawn[1]]}},
        "required": ["one", "two"],
        "additionalProperties": False,
    }


def grammar_of(schema: Schema) -> Grammar:
    """The schema as a request carries it; llguidance's own key forbids whitespace between values."""
    compact = {**schema, "x-guidance": {"whitespace_flexible": False}}
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(compact))
