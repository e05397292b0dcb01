"""The map from what clients rely on to the tests that fail without it: complete, and of tests that exist."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.mutations.__main__ import ROOT, read_breaks

TESTS = Path(__file__).parents[1]
RULES = tomllib.loads((Path(__file__).parent / "checklist.toml").read_text())
DECLINED = RULES.pop("declined")
NUM_BREAKS = 34  # break modes seen in the wild
NUM_DEFECTS = 23  # of streams, each measured to break some client


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("section", sorted(RULES))
def test_every_rule_names_tests_that_exist(section: str) -> None:
    for rule, tests in RULES[section].items():
        assert tests, f"{rule} has no test"
        for test in tests:
            path, _, name = test.partition("::")
            assert name in functions_of(path), f"{section}.{rule} names {test}"
            assert name.startswith("test_")


def test_a_test_that_does_not_exist_is_found() -> None:
    assert "test_a_whole_reply" in functions_of("gateway/test_chat.py")
    assert "test_a_hole_reply" not in functions_of("gateway/test_chat.py")


def test_the_numbered_lists_are_complete() -> None:
    numbers = [rule.partition("-")[0] for rule in RULES["breaks-seen-in-the-wild"]]
    assert numbers == [f"{number:02}" for number in range(1, NUM_BREAKS + 1)]
    assert len(RULES["defects-of-streams"]) == NUM_DEFECTS


def test_what_is_declined_says_why() -> None:
    assert all(len(reason) > 10 for reason in DECLINED.values())


def test_planted_breaks_can_still_be_planted() -> None:
    """`python -m tests.mutations` runs them; here only that each still fits its file and is still Python."""
    for one in read_breaks():
        text = (ROOT / one.file).read_text(encoding="utf-8")
        assert text.count(one.find) == 1, f"{one.rule}: {one.file} has {one.find!r} {text.count(one.find)} times"
        if one.file.endswith(".py"):  # two blank lines are between definitions: a file for each break would take long
            at = text.index(one.find)
            begin, end = text.rfind("\n\n\n", 0, at) + 1, text.find("\n\n\n", at + len(one.find))
            part = text[begin : len(text) if end < 0 else end]
            compile(part.replace(one.find, one.replace), one.file, "exec")


@pytest.mark.parametrize("section", sorted(RULES))
def test_every_rule_has_a_planted_break(section: str) -> None:
    broken = {one.rule for one in read_breaks()}
    assert [rule for rule in RULES[section] if f"{section}.{rule}" not in broken] == []
