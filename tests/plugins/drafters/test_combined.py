"""`combined` asks first what has brought most to the request at hand."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ortserve.plugins.combined import CombinedDrafter
from ortserve.plugins.drafting import DraftRequest, SequenceView, Verified
from tests.plugins.drafters.play import NEVER, new_context

PREDICTION = tuple(range(100, 400))
PROMPT = (7, 8, 9, 10, 11) * 3


def run(drafter: CombinedDrafter, id: str, accepted: Iterable[tuple[str, int]]) -> list[str]:
    """The sources used when a draft of each source is accepted so far; the reply never grows."""
    luck = dict(accepted)
    used = []
    for _ in range(200):
        drafts = drafter.propose([SequenceView(id, PROMPT, len(PROMPT), 8)], NEVER)
        assert len(drafts) == 1
        used.append(drafts[0].source)
        drafter.observe([Verified(id, used[-1], 8, luck[used[-1]], (0,) * (luck[used[-1]] + 1))])
    return used


def new(id: str = "one", **options: str) -> CombinedDrafter:
    drafter = CombinedDrafter(new_context(options))
    drafter.start(DraftRequest(id, b"", PROMPT, PREDICTION))
    return drafter


def test_what_is_worth_more_is_found_and_kept() -> None:
    used = run(new(sources="prediction,suffix,ngram"), "one", [("prediction", 0), ("suffix", 2), ("ngram", 6)])
    assert used[0] == "prediction"
    assert used.count("ngram") > 180
    used = run(new(sources="ngram,prediction"), "one", [("prediction", 6), ("ngram", 0)])
    assert used.count("prediction") > 180


def test_a_bad_source_gets_another_chance_when_the_good_one_fails() -> None:
    drafter = new(sources="ngram,prediction")
    run(drafter, "one", [("prediction", 6), ("ngram", 0)])
    used = run(drafter, "one", [("prediction", 0), ("ngram", 6)])
    assert used.count("ngram") > 180


def test_each_request_has_its_own_order() -> None:
    drafter = new(sources="ngram,prediction")
    drafter.start(DraftRequest("two", b"", PROMPT, PREDICTION))
    run(drafter, "one", [("prediction", 0), ("ngram", 6)])
    views = [SequenceView(id, PROMPT, len(PROMPT), 8) for id in ("one", "two")]
    assert {draft.id: draft.source for draft in drafter.propose(views, NEVER)} == {"one": "ngram", "two": "prediction"}


def test_of_drafts_with_chances_the_most_promising_is_taken_each_time() -> None:
    drafter = new(sources="suffix,prediction")
    drafter.propose([SequenceView("one", PROMPT, len(PROMPT), 8)], NEVER)
    # Behind what repeats for long, the prediction is a doubt: the reply has not followed it.
    repeated = (*PROMPT, *range(500, 540), *range(500, 520))
    (draft,) = drafter.propose([SequenceView("one", repeated, len(PROMPT), 8)], NEVER)
    assert (draft.source, draft.tokens[0]) == ("suffix", 520)
    followed = (*repeated, *PREDICTION[:40])
    (draft,) = drafter.propose([SequenceView("one", followed, len(PROMPT), 8)], NEVER)
    assert (draft.source, draft.tokens[0]) == ("prediction", PREDICTION[40])


def test_where_the_first_has_nothing_the_next_is_asked() -> None:
    drafter = CombinedDrafter(new_context())
    drafter.start(DraftRequest("one", b"", PROMPT))
    assert drafter.propose([SequenceView("one", PROMPT, len(PROMPT), 8)], NEVER)[0].source == "suffix"


def test_options_reach_their_source() -> None:
    drafter = new(sources="ngram", **{"ngram.max_draft": "2"})
    assert len(drafter.propose([SequenceView("one", PROMPT, len(PROMPT), 8)], NEVER)[0].tokens) == 2


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"sources": "combined"}, "name other drafters"),
        ({"sources": "ngram,ngram"}, "each once"),
        ({"sources": ""}, "name other drafters"),
        ({"max_n": "3"}, "no option max_n"),
        ({"suffix.max_n": "3"}, "suffix has no option max_n"),
        ({"sources": "ngram", "suffix.max_draft": "3"}, "no option suffix.max_draft"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_words(options: dict[str, str], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        CombinedDrafter(new_context(options))
