"""What of a cut object is kept is what the clients' own reader keeps."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from jiter import from_json

from ortserve.gateway.tools.cut_json import whole_members

VALUES = some.recursive(
    some.none() | some.booleans() | some.integers(-999, 999) | some.text(max_size=6),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(some.dictionaries(some.text(max_size=4), VALUES, min_size=1, max_size=4), some.sampled_from([None, 1]))
def test_every_cut_keeps_what_is_whole(value: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    for end in range(1, len(text) + 1):
        cut = text[:end]
        if cut.rstrip()[-1:].isalnum() and cut.rstrip()[-1] != '"':
            continue  # numbers and words that may go on: jiter keeps some of them, here none is kept
        assert whole_members(cut) == from_json(cut.encode(), partial_mode=True), cut
    assert whole_members(text) == value


def test_numbers_and_words_that_may_go_on_are_left_out() -> None:
    assert whole_members('{"a": 1, "b": 12') == {"a": 1}
    assert whole_members('{"a": [1, 2') == {"a": [1]}
    assert whole_members('{"a": tru') == {}
    assert whole_members('{"a": {"b": "c", "d') == {"a": {"b": "c"}}


def test_texts_that_are_no_object_have_no_members() -> None:
    for text in ("", "x", "[1, 2", '"a', "{]", '{"a" 1, "b": "c"'):
        assert whole_members(text) == {}
