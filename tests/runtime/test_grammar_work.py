"""What a grammar may cost is bounded by counts: the costly ones are refused before the compiler has seen them.

Each of these once took it from seconds to for ever. Those at the bounds are compiled, so the bounds are no lower.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import llguidance
import pytest

from ortserve.export.bundled import bundled_model
from ortserve.runtime.errors import RequestError
from ortserve.runtime.grammar.guidance import GuidanceGrammars
from ortserve.runtime.grammar.lark_work import excessive_lark
from ortserve.runtime.grammar.schema_work import MAX_MEETING, MAX_NAME_PATTERNS, MAX_REMAINDERS, excessive_work
from ortserve.runtime.request import Grammar, GrammarKind
from ortserve.runtime.testing import write_synthetic_model


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> GuidanceGrammars:
    made = write_synthetic_model(tmp_path_factory.mktemp("manifest"))
    manifest = replace(made, num_tokens=2048, eos_token_ids=(2, 0))
    return GuidanceGrammars((bundled_model() / "tokenizer.json").read_bytes(), manifest, num_threads=1)


def pattern(number: int) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^.*a.{{{number}}}.*$"}


def patterns(count: int) -> list[dict[str, Any]]:
    return [pattern(number) for number in range(count)]


def texts(count: int, prefix: str = "") -> str:
    return "start: A\nA: " + " & ".join(f"{prefix}/.*a.{{{number}}}.*/" for number in range(count))


def names(count: int) -> dict[str, Any]:
    return {"type": "object", "patternProperties": {f"^k{number}x": {"type": "integer"} for number in range(count)}}


COSTLY: dict[str, dict[str, Any]] = {
    "all of": {"allOf": patterns(30)},
    "all of, nested": {"allOf": [{"allOf": patterns(15)}, {"allOf": [pattern(15), {"allOf": patterns(20)[16:]}]}]},
    "by reference": {
        "$defs": {
            f"d{number}": {**pattern(number), "allOf": [{"$ref": f"#/$defs/d{number + 1}"}]} for number in range(29)
        }
        | {"d29": pattern(29)},
        "$ref": "#/$defs/d0",
    },
    "of one property": {"allOf": [{"type": "object", "properties": {"x": one}} for one in patterns(30)]},
    "of other names": {
        "allOf": [
            {"type": "object", "properties": {"x": pattern(30)}},
            *({"additionalProperties": one} for one in patterns(30)),
        ]
    },
    "of items": {"allOf": [{"type": "array", "items": one} for one in patterns(30)]},
    "in one alternative": {"anyOf": [{"type": "null"}, {"allOf": patterns(30)}]},
    "in each of many choices": {"allOf": [{"anyOf": [one, {**one, "format": "uri"}]} for one in patterns(30)]},
    "multiples": {"allOf": [{"type": "integer", "multipleOf": number} for number in range(2, 20)]},
    "a multiple": {"type": "integer", "multipleOf": 9699690},
    "a power of two": {"type": "integer", "multipleOf": 2**30},
    "a multiple with a point": {"type": "number", "multipleOf": 9699.69},
    "a common multiple": {"allOf": [{"type": "integer", "multipleOf": number} for number in (9973, 9967)]},
    "patterns of names": names(300),
}
FOLLOWED: dict[str, dict[str, Any]] = {
    "as many as may meet": {
        "allOf": [{"type": "string", "pattern": f"^[a-z]*{'x' * (number + 1)}$"} for number in range(8)]
    },
    "of different properties": {
        "type": "object",
        "properties": {f"p{number}": pattern(number) for number in range(40)},
    },
    "of different branches": {"anyOf": patterns(40)},
    "of different branches of branches": {"anyOf": [{"anyOf": patterns(20)}, {"anyOf": patterns(40)[20:]}]},
    "of a base and one of many": {
        "type": "object",
        "properties": {"id": {"type": "string", "format": "uuid"}},
        "anyOf": [{"properties": {"id": {"type": "string", "minLength": number}}} for number in range(40)],
    },
    "of different items": {"type": "array", "prefixItems": patterns(20), "items": False},
    "a recursion": {
        "$defs": {"node": {"type": "object", "properties": {"name": pattern(1), "next": {"$ref": "#/$defs/node"}}}},
        "$ref": "#/$defs/node",
    },
    "seconds of a day": {"type": "integer", "multipleOf": 86_400},
    "a million": {"type": "integer", "multipleOf": 1_000_000},
    "cents": {"type": "number", "multipleOf": 0.01},
    "names": names(MAX_NAME_PATTERNS),
}


@pytest.mark.parametrize("case", COSTLY)
def test_costly_schemas_are_refused_before_they_are_compiled(
    grammars: GuidanceGrammars, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(*_: object, **__: object) -> None:
        raise AssertionError("the compiler was asked")

    inner = dict(COSTLY[case])
    definitions = inner.pop("$defs", {})
    monkeypatch.setattr(llguidance, "LLMatcher", seen)
    for text, kind in (
        (json.dumps(COSTLY[case]), GrammarKind.JSON_SCHEMA),
        (f"start: %json {json.dumps(COSTLY[case])}", GrammarKind.LARK),
        (json.dumps({"$defs": definitions, "type": "object", "properties": {"in": inner}}), GrammarKind.JSON_SCHEMA),
    ):
        with pytest.raises(RequestError, match=r"(is not|are) followed") as caught:
            grammars.compile(Grammar(kind, text))
        assert caught.value.parameter == "grammar"


@pytest.mark.parametrize("case", FOLLOWED)
def test_what_meets_in_no_value_is_not_counted_together(case: str) -> None:
    assert excessive_work(FOLLOWED[case]) is None
    assert excessive_work({"type": "array", "items": FOLLOWED[case]}) is None


def test_grammars_at_the_bounds_are_compiled(grammars: GuidanceGrammars) -> None:
    for schema in (
        FOLLOWED["names"],
        FOLLOWED["seconds of a day"],
        {"type": "integer", "multipleOf": MAX_REMAINDERS - 1},
    ):
        assert grammars.compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))).failure is None
    assert grammars.compile(Grammar(GrammarKind.LARK, texts(MAX_MEETING, "~"))).failure is None


@pytest.mark.parametrize("prefix", ["", "~", "~ "])
def test_texts_that_meet_in_a_lark_grammar_are_counted(
    grammars: GuidanceGrammars, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llguidance, "LLMatcher", None)
    with pytest.raises(RequestError, match="of & and ~, and at most 8 are followed"):
        grammars.compile(Grammar(GrammarKind.LARK, texts(MAX_MEETING + 2, prefix)))


@pytest.mark.parametrize(
    "text",
    [
        'start: "' + "&~" * 30 + '"',
        "start: /" + "[&~]" * 30 + "/",
        "// " + "&" * 30 + '\nstart: "a"',
        'start: "a"~3 ' * 30,
    ],
)
def test_signs_that_are_no_operators_are_not_counted(text: str) -> None:
    assert excessive_lark(text) is None


def test_a_schema_whose_values_meet_in_too_many_ways_is_not_looked_through() -> None:
    """Each of 2 ** 30 ways through the choices would be a group of its own."""
    step: dict[str, Any] = {"type": "null"}
    for number in range(30):
        step = {"anyOf": [{"minLength": number, "allOf": [step]}, {"maxLength": number, "allOf": [step]}]}
    assert "too many combinations" in str(excessive_work(step))


@pytest.mark.parametrize(
    "schema", [True, [], {"allOf": 3, "properties": [], "$ref": 7, "items": "x", "multipleOf": "2"}]
)
def test_what_is_no_schema_is_left_to_the_compiler_to_refuse(schema: object) -> None:
    assert excessive_work(schema) is None
