"""`form` fills the blanks of earlier replies with what stands in the same place of the prompt at hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.plugins.blanks import BEGIN, PromptText, Reading
from ortserve.plugins.drafting import DraftRequest, Ended, SequenceView
from ortserve.plugins.form import FormDrafter
from ortserve.plugins.spelling import NOTHING, Spelling
from tests.plugins.drafters.play import NEVER, new_context, replay

# Bytes, and words as a tokenizer has them: with the space before them, and some also without.
WORDS = [bytes([byte]) for byte in range(256)]
for word in (" Ann", " Paris", "Par", "is", " aged", '{"', "name", '":', ' "', '",', '"}', " from", " city"):
    # each merge joins one letter
    WORDS += [word[:end].encode() for end in range(2, len(word) + 1) if word[:end].encode() not in WORDS]
WORDS.append(b"")
END = len(WORDS) - 1
SPELLING = Spelling(WORDS)


def prompt_of(name: str, city: str, age: int) -> tuple[int, ...]:
    return SPELLING.spell(f"Fields: name, city, age. We met {name} from {city}, aged {age}.".encode())


def reply_of(name: str, city: str, age: int) -> tuple[int, ...]:
    return (*SPELLING.spell(f'{{"name": "{name}", "city": "{city}", "age": {age}}}'.encode()), END)


PEOPLE = [("Ann", "Rome", 31), ("Bob", "Oslo", 7), ("Cleo", "New York", 45), ("Dora", "Paris", 62)]


def new_form(**options: str) -> FormDrafter:
    return FormDrafter(replace(new_context(options), load_words=lambda: WORDS))


def test_a_reply_of_a_known_form_is_guessed_whole() -> None:
    drafter = new_form()
    reached = [replay(drafter, prompt_of(*who), reply_of(*who), id=who[0]).tokens_per_step for who in PEOPLE]
    assert reached[0] < 4  # nothing is known but words of its prompt
    assert min(reached[1:]) >= 7  # of at most 9


@pytest.mark.parametrize(("salt", "options"), [(b"two", {}), (b"one", {"tenant_tokens": "0"})])
def test_nothing_is_guessed_from_another_tenants_forms(salt: bytes, options: dict[str, str]) -> None:
    drafter = new_form(**options)
    for who in PEOPLE[:3]:
        replay(drafter, prompt_of(*who), reply_of(*who), salt=b"one")
    drafter.start(DraftRequest("asked", salt, prompt_of(*PEOPLE[3])))
    tokens = (*prompt_of(*PEOPLE[3]), *SPELLING.spell(b'{"'))
    assert not drafter.propose([SequenceView("asked", tokens, len(prompt_of(*PEOPLE[3])), 8)], NEVER)


def test_a_word_that_is_not_the_forms_is_completed_from_the_prompt() -> None:
    drafter = new_form()
    prompt = prompt_of("Leonardo", "Rome", 3)
    drafter.start(DraftRequest("one", b"", prompt))
    (draft,) = drafter.propose([SequenceView("one", (*prompt, *SPELLING.spell(b'{"Leo')), len(prompt), 8)], NEVER)
    assert SPELLING.join(draft.tokens) == b"nardo"


def test_without_words_there_is_silence() -> None:
    drafter = FormDrafter(new_context())
    assert replay(drafter, prompt_of(*PEOPLE[0]), reply_of(*PEOPLE[0])).num_proposed == 0


def test_what_is_known_of_forms_is_bounded() -> None:
    drafter = new_form(tenant_tokens="60", recent_tokens="100")
    for number in range(300):
        name = f"x{number}"
        replay(drafter, prompt_of(name, "Rome", 3), SPELLING.spell(name.encode()), salt=b"%d" % (number % 9))
    assert sum(map(len, drafter._known.values())) < 120


def test_replies_read_alike_whatever_they_are_filled_with() -> None:
    found = set()
    for who in PEOPLE:
        reading = Reading(PromptText(SPELLING.join(prompt_of(*who))), SPELLING)
        symbols = [symbol for token in reply_of(*who) for symbol in reading.follow(token, {})]
        found.add((*symbols, *reading.finish({})))
    assert len(found) == 1
    assert sum(symbol > BEGIN for symbol in found.pop()) == 6  # three keys, which the prompt lists, and three values


@pytest.mark.parametrize(
    ("prompt", "reply", "found"),
    [
        (b"aged 31, Ann", b"31", [(b"", b"aged ", 0)]),
        (b"aged 310, Ann", b"31", [b"3", b"1"]),  # no word ends there
        (b"managed 1; aged 31", b"31", [(b"", b"aged ", 0)]),  # an anchor is a whole word
        (b"a 1 a 2 a 3", b"2", [(b"", b"a ", 1)]),
        (b"to New York, by", b"in New York.", [b"i", b"n", b" ", (b"", b"to ", 0), b"."]),  # the longest piece
        (b"to New York, by", b"New Yor", [(b"", b"to ", 0), b" ", b"Y", b"o", b"r"]),
        (b"31 years", b"31", [(b"", b"", 0)]),
        (b"x 5 y 5", b"5", [(b"", b"y ", 0)]),  # the last of several: behind the instructions
    ],
)
def test_a_piece_is_named_by_the_word_before_it(
    prompt: bytes, reply: bytes, found: list[bytes | tuple[bytes, bytes, int]]
) -> None:
    reading = Reading(PromptText(prompt), SPELLING)
    symbols = [symbol for token in SPELLING.spell(reply) for symbol in reading.follow(token, {})]
    symbols += reading.finish({})
    assert [
        tuple(reading.filled[symbol].blank) if symbol > BEGIN else SPELLING.text(symbol) for symbol in symbols
    ] == found


def test_of_several_places_the_known_one_is_taken() -> None:
    first = Reading(PromptText(b"x 5 y 6"), SPELLING)
    first.follow(SPELLING.spell(b"5")[0], {})
    (known,) = first.finish({})
    other = Reading(PromptText(b"x 7 y 7"), SPELLING)
    other.follow(SPELLING.spell(b"7")[0], first.filled)
    assert other.finish(first.filled) == [known]


@pytest.mark.parametrize(
    ("prompt", "piece"),
    [
        (b"from Rome, aged 31", b"Rome"),
        (b"from New York, aged 31", b"New York"),
        (b"from Rome, age unknown", b"Rome"),  # another word follows, with the same gap
        (b"from Rome", b"Rome"),  # nothing follows
        (b"of Rome, aged 31", b""),
    ],
)
def test_a_blank_is_filled_up_to_what_followed_before(prompt: bytes, piece: bytes) -> None:
    filled = PromptText(b"from Oslo, aged 31").describe(b"", 5, 9)
    assert PromptText(prompt).fill(filled) == piece


@given(st.binary(max_size=40))
def test_text_is_spelled_as_itself(text: bytes) -> None:
    assert SPELLING.join(SPELLING.spell(text)) == text
    assert SPELLING.text(END) == NOTHING == SPELLING.text(10**6)


def test_merging_follows_the_ids() -> None:
    assert [SPELLING.text(token) for token in SPELLING.spell(b'"Paris", Paris')] == [
        b'"', b"Par", b"is", b'",', b" Paris",
    ]  # fmt: skip
    drafter = new_form()
    drafter.forget([Ended("unknown", (1, 2))])
