"""Silent schemas are closed where that contradicts nothing, and what is then valid was valid before."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from ortserve.gateway.tools.closing import closed

CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SHUT = {**CITY, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (CITY, SHUT),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
        (
            {"type": "object", "properties": {"places": {"type": "array", "items": CITY}}},
            {
                "type": "object",
                "properties": {"places": {"type": "array", "items": SHUT}},
                "additionalProperties": False,
            },
        ),
        ({"$ref": "#/$defs/a", "$defs": {"a": CITY}}, {"$ref": "#/$defs/a", "$defs": {"a": SHUT}}),
        ({"anyOf": [CITY, {"type": "null"}]}, {"anyOf": [SHUT, {"type": "null"}]}),
    ],
)
def test_what_is_silent_is_closed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},  # arguments of any name are meant
        {**CITY, "additionalProperties": True},
        {**CITY, "additionalProperties": {"type": "integer"}},
        {**CITY, "required": ["town"]},  # nothing could satisfy it
        {**CITY, "patternProperties": {"^x": {}}},
        {"allOf": [CITY, {"type": "object", "properties": {"day": {}}}]},
        {"oneOf": [CITY, {"type": "object", "properties": {"day": {}}}]},
        {**CITY, "default": {"city": "Rome", "properties": {"a": 1}}, "additionalProperties": True},
        {**CITY, "$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}},
    ],
)
def test_what_says_something_or_could_be_contradicted_stays(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_the_closed_schema_allows_nothing_new() -> None:
    for arguments in ({"city": "Rome"}, {"city": "Rome", "day": 1}, {}, {"city": 1}):
        is_valid = jsonschema.Draft202012Validator(dict(closed(CITY))).is_valid(arguments)
        assert not is_valid or jsonschema.Draft202012Validator(CITY).is_valid(arguments)
