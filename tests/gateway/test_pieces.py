"""Pieces joined are the text, and the log-probability entries join to exactly its bytes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.gateway.prompts.tokenizer import TextTokenizer
from ortserve.gateway.replies.judged import JudgedPrompt
from ortserve.gateway.replies.pieces import Piece, TextAssembler
from ortserve.runtime.request import TokenLogprobs
from tests.gateway.scripted import IM_END, make_tokenizer
from tests.gateway.test_text import naive_cut

TOKENIZER = make_tokenizer()
texts = st.text("heloworldSTP \u00e9\u4e2d\U0001f600", max_size=24)
stops = st.lists(st.sampled_from(["STOP", "o", "lo w", "\u00e9", "\U0001f600", "OP"]), max_size=2)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TOKENIZER


def entries(ids: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(token, -0.5, ((token, -0.5),)) for token in ids)


def assemble(ids: tuple[int, ...], cuts: list[int], stop: list[str], *, with_logprobs: bool) -> Piece:
    """All pieces of `ids`, fed in chunks, joined."""
    assembler = TextAssembler(TOKENIZER, stop, strip_first_space=False, with_logprobs=with_logprobs)
    places = sorted({min(cut, len(ids)) for cut in cuts} | {0, len(ids)})
    pieces: list[Piece] = []
    for start, end in itertools.pairwise(places):
        chunk = ids[start:end]
        pieces.append(assembler.feed(chunk, entries(chunk) if with_logprobs else ()))
        if pieces[-1].stopped:
            break
    else:
        pieces.append(assembler.finish())
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.tokens),
        next((piece.stop for piece in pieces if piece.stop is not None), None),
    )


@given(texts, stops, st.lists(st.integers(0, 60)), st.booleans())
def test_any_chunking_gives_the_same_text(text: str, stop: list[str], cuts: list[int], with_logprobs: bool) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    whole = assemble(ids, cuts, stop, with_logprobs=with_logprobs)
    assert (whole.text, whole.stopped) == naive_cut(text, stop)


@given(texts, stops, st.lists(st.integers(0, 60)))
def test_entries_join_to_the_bytes_of_the_text(text: str, stop: list[str], cuts: list[int]) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    whole = assemble(ids, cuts, stop, with_logprobs=True)
    assert b"".join(token.data for token in whole.tokens) == whole.text.encode()


@given(texts, st.integers(0, 30))
def test_cut_characters_take_their_entries_with_them(text: str, length: int) -> None:
    """max_tokens may end inside a character: neither text nor entries show its bytes."""
    ids = TOKENIZER.encode(text, add_special_tokens=False)[:length]
    whole = assemble(ids, [], [], with_logprobs=True)
    assert "\ufffd" not in whole.text
    assert b"".join(token.data for token in whole.tokens) == whole.text.encode()


def test_a_token_cut_by_a_stop_shows_its_first_part(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("hello world", add_special_tokens=False)
    assert len(ids) == 2
    whole = assemble(ids, [1], ["or"], with_logprobs=True)
    assert whole.text == "hello w"
    assert [(token.text, token.data) for token in whole.tokens] == [("hello", b"hello"), (" w", b" w")]


class Halves:
    """A tokenizer whose second token begins inside of a character and goes on after it."""

    def token_bytes(self, token_id: int) -> bytes:
        return (b"\xc3", b"\xa9 world")[token_id]

    def token_name(self, token_id: int) -> str:
        return repr(self.token_bytes(token_id))


def test_a_cut_token_that_begins_inside_of_a_character_ends_where_the_text_does() -> None:
    halves: Any = Halves()
    assembler = TextAssembler(halves, ["or"], strip_first_space=False, with_logprobs=True)
    pieces = [assembler.feed((token,), entries((token,))) for token in (0, 1)]
    assert "".join(piece.text for piece in pieces) == "\u00e9 w"
    assert [token.data for piece in pieces for token in piece.tokens] == [b"\xc3", b"\xa9 w"]


def test_special_tokens_have_a_name_but_no_text(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(f"he{IM_END}", add_special_tokens=False)
    whole = assemble(ids, [], [], with_logprobs=True)
    assert whole.text == "he"
    assert [token.text for token in whole.tokens] == ["he", IM_END]


def test_tokens_after_a_stop_do_not_count(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("hello STOP world", add_special_tokens=False)
    assembler = TextAssembler(tokenizer, ["STOP"], strip_first_space=False, with_logprobs=False)
    piece = assembler.feed(ids)
    assert (piece.text, piece.stopped) == ("hello ", True)
    assert assembler.num_tokens == ids.index(tokenizer.encode("STOP", add_special_tokens=False)[0]) + 1


def test_the_first_space_is_stripped_once(tokenizer: TextTokenizer) -> None:
    assembler = TextAssembler(tokenizer, [], strip_first_space=True, with_logprobs=True)
    ids = tokenizer.encode("  world", add_special_tokens=False)
    piece = assembler.feed(ids, entries(ids))
    assert piece.text == " world"
    assert b"".join(token.data for token in piece.tokens) == b" world"


def test_impossible_tokens_have_finite_logprobs(tokenizer: TextTokenizer) -> None:
    assembler = TextAssembler(tokenizer, [], strip_first_space=False, with_logprobs=True)
    ids = tokenizer.encode("he", add_special_tokens=False)
    impossible = TokenLogprobs(ids[0], float("-inf"), ((ids[0], float("nan")),))
    piece = assembler.feed(ids, (impossible,))
    judged = JudgedPrompt(tokenizer, [ids[0], ids[0]])
    judged.add([impossible])
    for token in (piece.tokens[0], judged.tokens[1]):
        assert token.logprob == -9999.0
        assert token.top[0][2] == -9999.0
