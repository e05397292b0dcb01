"""The tokenizer: ids, exact bytes, one beginning, and other threads running while it works."""

from __future__ import annotations

import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.gateway.prompts.tokenizer import TextTokenizer
from ortserve.runtime.errors import ModelError
from tests.gateway.scripted import IM_START, make_tokenizer, tokenizer_json


def test_bytes_of_tokens_join_to_the_text() -> None:
    tokenizer = make_tokenizer()
    text = "hello world caf\u00e9 \U0001f600\n\t\x00"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    assert len(text.encode()) <= len(ids) * tokenizer.longest_token


def test_special_tokens_have_names_and_no_bytes() -> None:
    tokenizer = make_tokenizer()
    (special,) = tokenizer.encode(IM_START, add_special_tokens=False)
    assert tokenizer.token_bytes(special) == b""
    assert tokenizer.token_name(special) == IM_START
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.token_name(10**6) == ""


def test_the_beginning_comes_once() -> None:
    plain = make_tokenizer()
    (bos,) = plain.encode(IM_START, add_special_tokens=False)
    tokenizer = TextTokenizer(tokenizer_json(), bos_token_id=bos, add_bos=True)
    hello = plain.encode("hello", add_special_tokens=False)
    assert tokenizer.encode("hello", add_special_tokens=True) == (bos, *hello)
    assert tokenizer.encode(f"{IM_START}hello", add_special_tokens=True) == (bos, *hello)
    assert tokenizer.encode("hello", add_special_tokens=False) == hello
    assert tokenizer.encode("", add_special_tokens=True) == (bos,)


@given(st.text(st.sampled_from("hello wrd\n\U0001f600\u00e9<>|"), max_size=40) | st.just(f"hello{IM_START}world hello"))
def test_tokens_know_their_places(text: str) -> None:
    tokenizer = make_tokenizer()
    tokens = tokenizer.encode_measured(text)
    assert tokens.ids == tokenizer.encode(text, add_special_tokens=False)
    ends = [tokens.end_of(place) for place in range(len(tokens.ids))]
    assert ends == sorted(ends)
    for position in range(len(text) + 1):
        assert tokens.num_before(position) == sum(end <= position for end in ends)


def test_removed_characters_are_skipped_a_few_at_a_time() -> None:
    definition = json.loads(tokenizer_json())
    definition["normalizer"] = {"type": "Replace", "pattern": {"String": "-"}, "content": ""}
    tokenizer = TextTokenizer(json.dumps(definition).encode(), bos_token_id=None, add_bos=False)
    text = "hello" + "-" * 9 + "world" + "-" * 1000 + "hello"
    tokens = tokenizer.encode_measured(text)
    num_hello = tokens.num_before(5)
    assert 0 < num_hello == tokens.num_before(14) < len(tokens.ids)
    assert tokens.num_before(19) == 0
    assert tokens.num_before(len(text)) == len(tokens.ids)


def test_other_threads_run_while_a_long_text_is_encoded() -> None:
    tokenizer, num_turns = make_tokenizer(), 0

    def encode(text: str, done: threading.Event) -> None:
        tokenizer.encode(text, add_special_tokens=False)
        done.set()

    for factor in (1, 2, 4, 8, 16):  # on a busy machine a turn may take long
        done, num_turns = threading.Event(), 0
        thread = threading.Thread(target=encode, args=("hello world, how are you? " * 20_000 * factor, done))
        thread.start()
        while not done.is_set():
            time.sleep(0.001)
            num_turns += 1
        thread.join()
        if num_turns > 10:
            break
    assert num_turns > 10


@pytest.mark.parametrize(
    ("decoder", "reason"), [(None, "none"), ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece")]
)
def test_decoders_that_need_neighbours_are_refused(decoder: object, reason: str) -> None:
    definition = json.loads(tokenizer_json())
    definition["decoder"] = decoder
    with pytest.raises(ModelError, match=reason):
        TextTokenizer(json.dumps(definition).encode(), bos_token_id=None, add_bos=False)


def test_a_damaged_definition_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="export the model again"):
        TextTokenizer(b"{", bos_token_id=None, add_bos=False)
