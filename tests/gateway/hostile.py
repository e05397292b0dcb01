"""Structures that are expensive or impossible to enforce: schemas too large or too deep, expressions that explode."""

from __future__ import annotations

from typing import Any


def deep_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


def wide_schema(num_properties: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"field_{index}": {"type": "string"} for index in range(num_properties)}}


def branching_schema(depth: int, width: int) -> dict[str, Any]:
    """Every level refers to the next one `width` times: a small text for `width ** depth` paths."""
    definitions = {
        f"d{level}": {
            "type": "object",
            "properties": {f"p{place}": {"$ref": f"#/$defs/d{level + 1}"} for place in range(width)},
            "required": [f"p{place}" for place in range(width)],
        }
        for level in range(depth)
    }
    return {"$defs": {**definitions, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def schema(value: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": value}}}


# What cannot be enforced, or is too large to be read.
REFUSED: dict[str, dict[str, Any]] = {
    "a schema of 50,000 properties": schema(wide_schema(50_000)),
    "a schema 150 levels deep": schema(deep_schema(150)),
    "a schema that refers to itself alone": schema({"$ref": "#"}),
    "a schema of 100,000 words": schema({"enum": [f"word {index}" for index in range(100_000)]}),
    "a long expression": {"guided_regex": "(ab|cd)?" * 100_000},
    "deep brackets": {"guided_regex": "(" * 5_000 + "a" + ")" * 5_000},
    "a look-ahead": {"guided_regex": "(?=a)b"},
    "a back-reference": {"guided_regex": r"(a)\1"},
    "a grammar that never ends": {"guided_grammar": 'start: a\na: "x" a'},
    "a long grammar": {"guided_grammar": "start: a0\n" + "".join(f'a{i}: "x" a{i + 1}\n' for i in range(20_000))},
}
# Harmless: expressions are followed by derivatives, without backtracking, and only as far as the reply goes.
TAKEN: dict[str, dict[str, Any]] = {
    "a schema with a nested repetition": schema({"type": "string", "pattern": "^((a{1,999}){1,999}){1,999}$"}),
    "a schema of huge bounds": schema({"type": "string", "minLength": 10_000_000}),
    "an array of a million": schema({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000}),
    "a repetition of repetitions": {"guided_regex": "((a{1,999}){1,999}){1,999}"},
    "nested stars": {"guided_regex": "(a+)+b"},
    "overlapping choices": {"guided_regex": "(a|a|aa)*b"},
    "a schema that branches": schema(branching_schema(12, 4)),
}
