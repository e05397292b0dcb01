"""llguidance as the engine uses it: what is forced, what may end, what fails, and what is refused in which words."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from ortserve.export.bundled import bundled_model
from ortserve.runtime.errors import RequestError
from ortserve.runtime.grammar.constraint import Constraint, Mask
from ortserve.runtime.grammar.guidance import MAX_KEPT, MAX_TEXT_BYTES, GuidanceGrammars, open_grammars
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.request import Grammar, GrammarKind
from ortserve.runtime.testing import write_synthetic_model

EOS = (2, 0)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["alpha", "alpine", "beta"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "fixed": {"const": "always the same words"},
    },
    "required": ["name", "kind", "fixed"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    made = write_synthetic_model(tmp_path_factory.mktemp("manifest"))
    return replace(made, num_tokens=2048, eos_token_ids=EOS)


@pytest.fixture(scope="module")
def grammars(manifest: Manifest) -> GuidanceGrammars:
    return GuidanceGrammars((bundled_model() / "tokenizer.json").read_bytes(), manifest, num_threads=2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(bundled_model() / "tokenizer.json"))


def schema(value: Any, *, compact: bool = True, after: str = "") -> Grammar:
    options = {"x-guidance": {"whitespace_flexible": False}} if compact else {}
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps({**value, **options}), after)


def regex(pattern: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, pattern)


def lark(text: str) -> Grammar:
    return Grammar(GrammarKind.LARK, text)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def ids_in(mask: Mask) -> list[int]:
    found: list[int] = np.flatnonzero(np.unpackbits(mask.bits, bitorder="little")).tolist()
    return found


def mask_of(grammars: GuidanceGrammars, constraint: Constraint) -> Mask:
    ((mask,),) = grammars.masks([(constraint, ())])
    return mask


@pytest.mark.parametrize("compact", [True, False])
def test_a_token_is_forced_exactly_where_the_mask_leaves_one_and_no_end(
    grammars: GuidanceGrammars, compact: bool
) -> None:
    num_forced = 0
    for seed in range(30):
        chance = random.Random(seed)
        constraint = grammars.compile(schema(PERSON, compact=compact))
        pending: list[int] = []
        for _ in range(120):
            if constraint.is_complete:
                break
            pending = pending or list(constraint.forced())
            mask = mask_of(grammars, constraint)
            allowed = ids_in(mask)
            assert allowed, "a dead end"
            assert not set(allowed) & set(EOS)
            if pending:
                assert (allowed, mask.can_end) == ([pending[0]], False)
                token = pending.pop(0)
                num_forced += 1
            else:
                assert len(allowed) > 1 or mask.can_end
                token = chance.choice(allowed)
            assert constraint.accept(token)
    assert num_forced > 100


def test_masks_after_guesses_are_those_after_accepting_them(grammars: GuidanceGrammars, tokenizer: Tokenizer) -> None:
    wanted: list[tuple[Constraint, list[int]]] = [(grammars.compile(regex("[ab]+")), [])]
    for text in ('{"name":"Bo","kind":"alpine","fixed":"always the same words"}', '{"name":"","kind":"be'):
        guesses = encode(tokenizer, text)
        constraint = grammars.compile(schema(PERSON))
        count = constraint.allowed_prefix(guesses)
        assert count >= 5
        assert constraint.allowed_prefix([*guesses[:3], 5, *guesses[3:]]) == 3
        wanted.append((constraint, guesses[:count]))
    for masks, (constraint, guesses) in zip(grammars.masks(wanted), wanted, strict=True):
        assert len(masks) == len(guesses) + 1
        for guess, mask in zip([*guesses, None], masks, strict=True):
            same = mask_of(grammars, constraint)
            assert (mask.bits.tobytes(), mask.can_end) == (same.bits.tobytes(), same.can_end)
            assert guess is None or constraint.accept(guess)


def test_where_a_reply_may_end_is_said_apart(grammars: GuidanceGrammars) -> None:
    constraint = grammars.compile(regex("(ab|abc)"))
    for token in constraint.forced():
        assert constraint.accept(token)
    mask = mask_of(grammars, constraint)
    assert (mask.can_end, constraint.is_complete) == (True, False)
    ends = np.flatnonzero(np.unpackbits(mask.with_ends([2, 0]), bitorder="little"))
    assert set(ends.tolist()) == {*ids_in(mask), 0, 2}
    assert constraint.accept(ids_in(mask)[0])
    assert constraint.is_complete
    assert constraint.failure is None


def test_a_constraint_that_has_failed_allows_nothing_not_even_the_end(grammars: GuidanceGrammars) -> None:
    constraint = grammars.compile(regex("a+"))
    assert not constraint.accept(500)
    assert constraint.failure is not None
    mask = mask_of(grammars, constraint)
    assert (ids_in(mask), mask.can_end) == ([], False)
    assert not constraint.is_complete


@pytest.mark.parametrize("marker", ["</think>", "</tool_call>"])  # plain text, and a token of its own
@pytest.mark.parametrize("gap", ["", "\n\n"])
def test_a_grammar_may_begin_after_a_marker(
    grammars: GuidanceGrammars, tokenizer: Tokenizer, marker: str, gap: str
) -> None:
    inner = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    constraint = grammars.compile(schema(inner, after=marker))
    for token in encode(tokenizer, f"So {{}} I think.{marker}{gap}"):
        assert not mask_of(grammars, constraint).can_end
        assert constraint.accept(token)
    rest = encode(tokenizer, '{"a":1}')
    assert constraint.allowed_prefix(encode(tokenizer, "no")) == 0
    assert constraint.allowed_prefix(rest) == len(rest)
    for token in rest:
        assert constraint.accept(token)
    assert constraint.is_complete


def test_whitespace_between_values_is_bounded(grammars: GuidanceGrammars, tokenizer: Tokenizer) -> None:
    grammar = schema({"type": "array", "items": {"type": "integer"}}, compact=False)
    for text, is_allowed in (("[ 1, 2 ]", True), ("[\n  1,\n  2\n]", True), ("[   1]", False), ("[\n\n1]", False)):
        ids = encode(tokenizer, text)
        assert (grammars.compile(grammar).allowed_prefix(ids) == len(ids)) is is_allowed, text


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (schema({"type": "object", "unevaluatedProperties": False}), "unevaluatedProperties"),
        (schema({"not": {}}), '"not"'),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"type": "string", "format": "banana"}), "banana"),
        (schema({"$ref": "#"}), "cannot be used"),
        (Grammar(GrammarKind.JSON_SCHEMA, "[]"), "object"),
        (Grammar(GrammarKind.JSON_SCHEMA, "{"), "cannot be used"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"items":' * 5000 + "{}" + "}" * 5000), "recursion"),
        (Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"const": "x" * MAX_TEXT_BYTES})), "bytes"),
        (regex("("), "unclosed"),
        (regex("(?=a)b"), "look-around"),
        (regex("(a)\\1"), "backreferences"),
        (regex(""), "no text"),
        (regex("a{1000000000}"), "no end"),
        (lark('start: "a" start'), "no end"),
        (lark("start: start"), "cannot be used"),
        (lark("begin: nothing"), "cannot be used"),
    ],
)
def test_what_cannot_be_enforced_is_refused_in_one_line(
    grammars: GuidanceGrammars, grammar: Grammar, words: str
) -> None:
    with pytest.raises(RequestError, match="cannot be used") as caught:
        grammars.compile(grammar)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert caught.value.parameter == "grammar"


@pytest.mark.parametrize("pattern", ["(a+)+$", "(x+x+)+y", "(.*a){15}b", "(a|b)*a(a|b){25}", "((a|b)*a(a|b){15}){3}"])
def test_expressions_that_ruin_backtracking_are_followed_or_given_up(grammars: GuidanceGrammars, pattern: str) -> None:
    chance = random.Random(1)
    constraint = grammars.compile(regex(pattern))
    num_taken = 0
    for _ in range(60):
        allowed = ids_in(mask_of(grammars, constraint))
        if constraint.failure is not None:
            assert allowed == []
        if not allowed or constraint.is_complete:
            break
        assert constraint.accept(chance.choice(allowed))
        num_taken += 1
    assert num_taken > 0


def test_compiled_grammars_are_kept_and_each_constraint_is_its_own(grammars: GuidanceGrammars) -> None:
    first, second = grammars.compile(regex("[ab]c")), grammars.compile(regex("[ab]c"))
    assert first.accept(ids_in(mask_of(grammars, first))[0])
    assert first.forced() != second.forced()
    for number in range(2 * MAX_KEPT):
        grammars.compile(regex(f"[ab]{{1,{number + 1}}}"))
    assert len(grammars._compiled) == MAX_KEPT


def test_a_late_drafter_may_ask_while_masks_are_computed(grammars: GuidanceGrammars, tokenizer: Tokenizer) -> None:
    constraint = grammars.compile(schema(PERSON))
    guesses = encode(tokenizer, '{"name":"B')
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(constraint.allowed_prefix, guesses) for _ in range(200)]
        for _ in range(200):
            grammars.masks([(constraint, guesses)])
        assert {one.result() for one in asked} == {len(guesses)}


def test_models_that_cannot_be_constrained_say_why(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(RequestError, match=r"no tokenizer\.json"):
        open_grammars(tmp_path, manifest, num_threads=1).compile(regex("a"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RequestError, match="does not read"):
        open_grammars(tmp_path, manifest, num_threads=1).compile(regex("a"))
    with pytest.raises(RequestError, match="end-of-sequence"):
        open_grammars(tmp_path, replace(manifest, eos_token_ids=()), num_threads=1).compile(regex("a"))
