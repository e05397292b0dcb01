"""`ngram` looks up what followed the last tokens before."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.plugins.drafting import DraftRequest, SequenceView
from ortserve.plugins.ngram import NgramDrafter, NgramIndex
from tests.plugins.drafters.play import NEVER, new_context


def guess(tokens: Sequence[int], max_draft: int = 4, **options: str) -> tuple[int, ...]:
    drafter = NgramDrafter(new_context(options))
    drafter.start(DraftRequest("one", b"", tuple(tokens[:3])))
    drafts = drafter.propose([SequenceView("one", tokens, 3, max_draft)], NEVER)
    return drafts[0].tokens if drafts else ()


def test_the_longest_match_wins() -> None:
    assert guess([1, 2, 3, 4, 5, 6, 9, 2, 3, 8, 7, 1, 2, 3]) == (4, 5, 6, 9)


def test_of_equal_matches_the_most_recent_wins() -> None:
    assert guess([1, 2, 5, 5, 5, 5, 1, 2, 6, 6, 6, 6, 1, 2]) == (6, 6, 6, 6)


def test_a_match_shorter_than_min_n_is_none() -> None:
    tokens = [1, 2, 3, 4, 5, 9, 3]
    assert guess(tokens) == ()
    assert guess(tokens, min_n="1") == (4, 5, 9, 3)


def test_a_loop_goes_on_beyond_the_end() -> None:
    assert guess([7, 1, 2, 3, 1, 2, 3, 1], max_draft=7) == (2, 3, 1, 2, 3, 1, 2)


def test_both_limits_hold() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 1, 2]
    assert guess(tokens, max_draft=2) == (3, 4)
    drafter = NgramDrafter(new_context({"max_draft": "3"}))
    drafter.start(DraftRequest("one", b"", tuple(tokens)))
    assert drafter.propose([SequenceView("one", tokens, 3, 8)], NEVER)[0].tokens == (3, 4, 5)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.data())
def test_an_index_grown_in_parts_finds_what_a_search_finds(tokens: list[int], data: st.DataObject) -> None:
    index = NgramIndex(2, 4)
    length = 0
    while length < len(tokens):
        length = data.draw(st.integers(length + 1, len(tokens)))
        index.extend(tokens, length)
        assert index.find(tokens, length) == _searched(tokens[:length])


def _searched(tokens: list[int]) -> int | None:
    for n in (4, 3, 2):
        for end in range(len(tokens) - 1, n - 1, -1):
            if n <= len(tokens) and tokens[end - n : end] == tokens[-n:]:
                return end
    return None


def test_past_the_deadline_it_stops() -> None:
    drafter = NgramDrafter(new_context())
    drafter.start(DraftRequest("one", b"", (1, 2, 1, 2)))
    assert not drafter.propose([SequenceView("one", [1, 2, 1, 2], 4, 4)], 0.0)


@pytest.mark.parametrize(
    ("options", "part"),
    [({"max": "1"}, "no option max"), ({"max_n": "x"}, "whole number"), ({"min_n": "9"}, "more than its max_n")],
)
def test_options_that_make_no_sense_are_refused_in_words(options: dict[str, str], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        NgramDrafter(new_context(options))
