"""`prediction` follows what the client expects, and finds its place again after an edit."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from ortserve.plugins.drafting import DraftRequest, SequenceView
from ortserve.plugins.prediction import Cursor, PredictionDrafter
from tests.plugins.drafters.play import NEVER, new_context


def after(prediction: Sequence[int], reply: Sequence[int], window: int = 4) -> tuple[int, ...]:
    cursor = Cursor(prediction, window)
    cursor.follow(reply)
    return cursor.ahead(3)


PREDICTION = tuple(range(10, 40))


def test_a_reply_in_line_gets_what_comes_next() -> None:
    assert after(PREDICTION, []) == (10, 11, 12)
    assert after(PREDICTION, [10, 11]) == (12, 13, 14)
    assert after(PREDICTION, PREDICTION[:-1]) == (39,)
    assert after(PREDICTION, PREDICTION) == ()


def test_after_a_token_out_of_line_there_is_no_guess_until_one_agrees() -> None:
    assert after(PREDICTION, [10, 11, 99]) == ()
    assert after(PREDICTION, [10, 11, 99, 13]) == (14, 15, 16)  # replaced
    assert after(PREDICTION, [10, 11, 99, 12]) == (13, 14, 15)  # inserted
    assert after(PREDICTION, [10, 11, 13]) == (14, 15, 16)  # dropped


def test_beyond_the_window_two_tokens_must_agree() -> None:
    assert after(PREDICTION, [10, 25]) == ()
    assert after(PREDICTION, [10, 25, 26]) == (27, 28, 29)


def test_it_goes_back_where_nothing_ahead_agrees() -> None:
    assert after(PREDICTION, [*range(10, 30), 12, 13]) == (14, 15, 16)


def test_what_is_ahead_comes_before_what_is_behind_and_near_before_far() -> None:
    prediction = (1, 2, 30, 5, 6, 7, 1, 2, 31, 8, 9, 1, 2, 32)
    assert after(prediction, [1, 2, 30, 5, 99, 1, 2]) == (31, 8, 9)


def test_the_place_where_most_agrees_comes_first() -> None:
    prediction = (0, 5, 1, 2, 30, 40, 40, 40, 40, 7, 8, 1, 2, 31, 32)
    assert after(prediction, [99, 7, 8, 1, 2]) == (31, 32)


def test_the_prompt_is_no_part_of_the_reply() -> None:
    drafter = PredictionDrafter(new_context())
    drafter.start(DraftRequest("one", b"", (20, 21), PREDICTION))
    assert drafter.propose([SequenceView("one", [20, 21], 2, 2)], NEVER)[0].tokens == (10, 11)
    drafter.start(DraftRequest("two", b"", (20, 21)))
    assert not drafter.propose([SequenceView("two", [20, 21], 2, 2)], NEVER)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30), st.data())
def test_how_the_reply_came_makes_no_difference(prediction: list[int], reply: list[int], data: st.DataObject) -> None:
    cursor = Cursor(prediction, 4)
    cut = data.draw(st.integers(0, len(reply)))
    cursor.follow(reply[:cut])
    cursor.follow(reply[cut:])
    assert cursor.ahead(3) == after(prediction, reply)
    if reply and cursor.ahead(1):  # what it follows agrees at least in the last token
        assert any(
            prediction[place - 1] == reply[-1] and tuple(prediction[place : place + 3]) == cursor.ahead(3)
            for place in range(1, len(prediction))
        )
