"""`suffix` matches the longest repeated run, in the request and in what its tenant got lately."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ortserve.plugins.drafting import DraftRequest, Ended, SequenceView, Verified
from ortserve.plugins.recent import RecentReplies
from ortserve.plugins.suffix import SuffixDrafter
from tests.plugins.drafters.play import NEVER, new_context, replay


def guess(drafter: SuffixDrafter, tokens: Sequence[int], *, salt: bytes = b"", max_draft: int = 3) -> tuple[int, ...]:
    drafter.start(DraftRequest("asked", salt, tuple(tokens[:1])))
    drafts = drafter.propose([SequenceView("asked", tokens, 1, max_draft)], NEVER)
    drafter.forget([Ended("asked", tuple(tokens[1:]))])
    return drafts[0].tokens if drafts else ()


def test_the_longest_match_wins_over_a_more_recent_one() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7, 9, 9, 3, 4, 5, 8, 8, 1, 2, 3, 4, 5]
    assert guess(SuffixDrafter(new_context()), tokens) == (6, 7, 9)


def test_of_equal_matches_the_most_frequent_wins() -> None:
    tokens = [1, 2, 5, 1, 2, 6, 3, 1, 2, 5, 4, 1, 2, 6, 0, 1, 2, 6, 7, 1, 2, 5, 9, 1, 2]
    assert guess(SuffixDrafter(new_context()), [1, 2, 5, *tokens], max_draft=1) == (5,)
    assert guess(SuffixDrafter(new_context()), [1, 2, 6, *tokens], max_draft=1) == (6,)


def test_a_reply_is_matched_by_later_requests_of_the_same_salt_only() -> None:
    drafter = SuffixDrafter(new_context())
    replay(drafter, [1], [10, 11, 12, 13, 14], salt=b"one")
    # the last token of the reply too, although no draft came before it
    assert guess(drafter, [1, 10, 11], salt=b"one") == (12, 13, 14)
    assert guess(drafter, [1, 10, 11], salt=b"two") == ()
    assert guess(drafter, [1, 10, 11], salt=b"") == ()


def test_the_last_tokens_of_a_drafted_reply_are_learnt() -> None:
    drafter = SuffixDrafter(new_context())
    for _ in range(2):
        replay(drafter, [1], [10, 11, 12, 13, 14], salt=b"one")
    assert guess(drafter, [1, 10, 11], salt=b"one") == (12, 13, 14)


def test_prompts_are_not_learnt() -> None:
    drafter = SuffixDrafter(new_context())
    replay(drafter, [10, 11, 12, 13], [1, 2, 3])
    assert guess(drafter, [5, 10, 11]) == ()


def test_replies_are_forgotten_in_the_order_they_came() -> None:
    recent = RecentReplies(8)
    for first in (10, 20, 30):
        recent.learn([first, first + 1, first + 2, first + 3])
    assert recent.num_tokens == 8
    recent.learn(range(100, 120))
    assert recent.num_tokens == 8


def test_the_least_recently_used_tenant_is_forgotten_first() -> None:
    drafter = SuffixDrafter(new_context({"tenant_tokens": "20", "recent_tokens": "25"}))
    for salt in (b"one", b"two", b"one", b"three"):
        replay(drafter, [1], range(10, 20), salt=salt)
    assert drafter.num_recent_tokens <= 25
    assert guess(drafter, [1, 10, 11], salt=b"two") == ()
    assert guess(drafter, [1, 10, 11], salt=b"three") == (12, 13, 14)


def test_nothing_is_kept_where_the_operator_says_so() -> None:
    drafter = SuffixDrafter(new_context({"tenant_tokens": "0"}))
    replay(drafter, [1], range(10, 20))
    assert drafter.num_recent_tokens == 0
    with pytest.raises(ValueError, match="from 1 up"):
        SuffixDrafter(new_context({"recent_tokens": "0"}))


def test_results_for_a_request_that_has_ended_are_ignored() -> None:
    drafter = SuffixDrafter(new_context())
    drafter.observe([Verified("gone", "suffix", 1, 1, (1, 2, 1, 2, 1, 2))])
    drafter.start(DraftRequest("next", b"", (9, 1, 2)))
    # Had it been kept, 1 would be guessed after 2.
    assert list(drafter.propose([SequenceView("next", (9, 1, 2), 3, 4)], NEVER)) == []
