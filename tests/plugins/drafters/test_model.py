"""`model` guesses what its small model says, reads what it missed, and never asks it for more than it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from ortserve.plugins.api import PluginContext
from ortserve.plugins.draft_contract import DrafterContract
from ortserve.plugins.draft_model import ModelDrafter
from ortserve.plugins.drafting import Draft, Drafter, DraftRequest, Ended, SequenceView
from ortserve.plugins.small_model import Feed, NextDraw
from tests.plugins.drafters.play import NEVER, new_context, replay

VOCAB = 32
EOS = 1  # of `new_context`


@dataclass(slots=True)
class Counting:
    """A model that says what a sum over the row says; refuses what the contract lets it refuse."""

    num_rows: int = 3
    max_context: int = 64
    max_tokens: int = 192
    max_feed: int = 24
    rows: dict[int, list[int]] = field(default_factory=dict)
    calls: list[list[Feed]] = field(default_factory=list)

    def extend(self, feeds: Sequence[Feed]) -> Sequence[int | None]:
        self.calls.append(list(feeds))
        assert len({feed.row for feed in feeds}) == len(feeds)
        for feed in feeds:
            assert 0 <= feed.row < self.num_rows
            assert 0 < len(feed.tokens) <= self.max_feed
            self.rows.setdefault(feed.row, []).extend(feed.tokens)
            assert len(self.rows[feed.row]) <= self.max_context
        assert sum(map(len, self.rows.values())) <= self.max_tokens
        return [says(self.rows[feed.row]) if feed.is_wanted else None for feed in feeds]

    def truncate(self, row: int, length: int) -> None:
        assert 0 <= length <= len(self.rows.setdefault(row, []))
        del self.rows[row][length:]

    def close(self) -> None:
        self.rows.clear()


def says(tokens: Sequence[int]) -> int:
    return 2 + (3 * tokens[-1] + sum(tokens) % 7) % (VOCAB - 2)


def continued(tokens: Sequence[int], count: int) -> tuple[int, ...]:
    found = list(tokens)
    for _ in range(count):
        found.append(says(found))
    return tuple(found[len(tokens) :])


def drafter_of(model: Counting, **options: str) -> ModelDrafter:
    return ModelDrafter(replace(new_context(options, VOCAB), load_model=lambda: model))


def ask(drafter: ModelDrafter, tokens: Sequence[int], max_draft: int = 4, id: str = "r") -> tuple[int, ...]:
    drafts = drafter.propose([SequenceView(id, tokens, 1, max_draft)], NEVER)
    assert [draft.length for draft in drafts] in ([], [len(tokens)])
    return drafts[0].tokens if drafts else ()


@dataclass(slots=True)
class Quiet(Counting):
    """With a row for each request: who loses one to another is a guess poorer, and the laws would call that a leak."""

    num_rows: int = 5
    max_tokens: int = 320

    def extend(self, feeds: Sequence[Feed]) -> Sequence[int | None]:
        found = Counting.extend(self, feeds)
        self.calls.clear()
        return found


class TestModelDrafter(DrafterContract):
    def make(self, context: PluginContext) -> Drafter:
        return ModelDrafter(replace(context, load_model=Quiet))


def test_it_guesses_what_its_model_says() -> None:
    drafter, prompt = drafter_of(Counting()), (5, 6, 7)
    found = replay(drafter, prompt, continued(prompt, 40), max_draft=8)
    assert found.num_proposed - found.num_accepted < 8  # those beyond the end of the reply
    assert found.num_steps == 5


def test_a_guess_that_failed_is_cut_off_before_the_next() -> None:
    model = Counting()
    drafter = drafter_of(model)
    drafter.start(DraftRequest("r", b"", (5, 6)))
    tokens = [5, 6, 9]
    guesses = ask(drafter, tokens)
    assert guesses == continued(tokens, 4)
    tokens += [*guesses[:2], (guesses[2] + 1) % VOCAB]
    assert ask(drafter, tokens) == continued(tokens, 4)
    # only what is new was read: the token drawn instead of the third guess
    assert [feed.tokens for feed in model.calls[-4]] == [(tokens[-1],)]


def test_a_step_that_failed_is_asked_for_again() -> None:
    drafter, tokens = drafter_of(Counting()), [5, 6, 9]
    drafter.start(DraftRequest("r", b"", (5, 6)))
    assert ask(drafter, tokens) == ask(drafter, tokens) == continued(tokens, 4)


def test_all_requests_are_guessed_for_in_one_call_per_guess() -> None:
    model = Counting()
    drafter = drafter_of(model)
    prompts = [(5, 6), (7, 8, 9), (10,)]
    for number, prompt in enumerate(prompts):
        drafter.start(DraftRequest(str(number), b"", prompt))
    views = [SequenceView(str(number), prompt, 1, 2 + number) for number, prompt in enumerate(prompts)]
    drafts = {draft.id: draft for draft in drafter.propose(views, NEVER)}
    for number, prompt in enumerate(prompts):
        assert drafts[str(number)].tokens == continued(prompt, 2 + number)
    assert [len(call) for call in model.calls] == [3, 3, 2, 1]


def test_a_long_prompt_is_read_in_parts_while_others_are_guessed_for() -> None:
    model = Counting()
    drafter = drafter_of(model, chunk="16", max_draft="4")
    prompt, short = tuple(2 + place % 20 for place in range(40)), [3, 4, 5]
    drafter.start(DraftRequest("long", b"", prompt))
    drafter.start(DraftRequest("short", b"", (3,)))
    answered: list[set[str]] = []
    for _ in range(3):
        drafts = drafter.propose([SequenceView("long", prompt, 40, 4), SequenceView("short", short, 1, 4)], NEVER)
        answered.append({draft.id for draft in drafts})
        by_id: dict[str, Draft] = {draft.id: draft for draft in drafts}
        assert by_id["short"].tokens == continued(short, 4)
        short.extend(by_id["short"].tokens)
    assert answered == [{"short"}, {"short"}, {"short", "long"}]
    assert by_id["long"].tokens == continued(prompt, 4)
    assert max(sum(len(feed.tokens) for feed in call) for call in model.calls) <= 16 + 2 * 5


def test_beyond_the_small_models_context_the_last_half_is_read_again() -> None:
    model = Counting()
    drafter = drafter_of(model)
    tokens = [2 + place % 20 for place in range(50)]
    drafter.start(DraftRequest("r", b"", tuple(tokens)))
    num_guessed = 0
    for _ in range(60):  # far beyond its 64 tokens; the model forgets, so it may say something else
        guesses = ask(drafter, tokens)
        num_guessed += len(guesses)
        tokens += [*guesses[:2], 3]
    assert num_guessed > 150
    assert guesses == continued(model.rows[0][: -len(guesses) + 1], 4)
    fed = sum(len(feed.tokens) for call in model.calls for feed in call)
    assert fed < 50 + 60 * 6 + 2 * len(tokens)


def test_the_request_asked_for_last_gets_the_row() -> None:
    model = Counting(num_rows=2)
    drafter = drafter_of(model)
    for number in range(3):
        drafter.start(DraftRequest(str(number), b"", (5 + number,)))
    for number in (0, 1, 0, 2, 1, 0):
        assert ask(drafter, (5 + number, 9), id=str(number)) == continued((5 + number, 9), 4)
    # Three at once share two rows: one goes without.
    drafts = drafter.propose([SequenceView(str(number), (5 + number, 9), 1, 2) for number in range(3)], NEVER)
    assert len(drafts) == 2


def test_rows_never_hold_more_than_the_model_may() -> None:
    model = Counting(max_tokens=70)
    drafter = drafter_of(model)
    for number in range(3):
        drafter.start(DraftRequest(str(number), b"", (5,) * 40))
    for number in (0, 1, 2, 1, 0):
        prompt = (5 + number,) * 40
        while not (guesses := ask(drafter, prompt, id=str(number))):
            pass
        assert guesses == continued(prompt, 4)  # `Counting` asserts the bound


def test_what_has_ended_leaves_its_row() -> None:
    model = Counting(num_rows=1)
    drafter = drafter_of(model)
    for number in range(3):
        drafter.start(DraftRequest(str(number), b"", (5,)))
        assert ask(drafter, (5, number + 2), id=str(number)) == continued((5, number + 2), 4)
        drafter.forget([Ended(str(number), (number + 2,))])
        assert model.rows[0] == []


def test_nothing_is_guessed_beyond_an_end() -> None:
    class Ends(Counting):
        def extend(self, feeds: Sequence[Feed]) -> Sequence[int | None]:
            super().extend(feeds)
            return [EOS if len(self.calls) == 2 else 7 for _ in feeds]

    drafter = drafter_of(Ends())
    drafter.start(DraftRequest("r", b"", (5,)))
    assert ask(drafter, (5, 6), max_draft=8) == (7, EOS)


def test_it_stops_at_the_deadline_with_what_it_has() -> None:
    now = [0.0]

    class Slow(Counting):
        def extend(self, feeds: Sequence[Feed]) -> Sequence[int | None]:
            now[0] += 1.0
            return super().extend(feeds)

    context = replace(new_context({}, VOCAB), load_model=Slow, clock=lambda: now[0])
    drafter = ModelDrafter(context)
    drafter.start(DraftRequest("r", b"", (5,)))
    view = SequenceView("r", (5, 6), 1, 8)
    drafter.propose([view], NEVER)  # learns what a call takes
    (draft,) = drafter.propose([view], now[0] + 3.5)
    assert draft.tokens == continued((5, 6), 3)


def test_the_requests_way_of_drawing_is_handed_on() -> None:
    @dataclass(frozen=True)
    class Rule:
        drawn: tuple[int, ...] = ()

        def after(self, token: int) -> NextDraw:
            return Rule((*self.drawn, token))

    model = Counting()
    drafter = drafter_of(model)
    drafter.start(DraftRequest("r", b"", (5,)))
    (draft,) = drafter.propose([SequenceView("r", (5, 6), 1, 3, draw=Rule())], NEVER)
    assert [call[0].draw for call in model.calls] == [Rule(draft.tokens[:count]) for count in range(3)]


def test_without_a_small_model_it_says_what_to_do() -> None:
    with pytest.raises(LookupError, match="--draft-model"):
        ModelDrafter(new_context())
