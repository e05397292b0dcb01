"""echo with logprobs, best_of and suffix, on the bundled model: what evaluation harnesses and editors send."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import AddedToken, Tokenizer

from ortserve.gateway.errors import ApiError
from ortserve.gateway.http.server import Limits
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.prompts.infill import MARKS, find_infill
from ortserve.gateway.prompts.prompt import PromptEncoder
from ortserve.gateway.prompts.tokenizer import TextTokenizer, load_tokenizer
from tests.gateway.pocket import serving_pocket
from tests.gateway.running import serving
from tests.gateway.scripted import make_driver, make_service, make_tokenizer, saying, tokenizer_json
from tests.gateway.test_chat import frames

PROMPT = "The capital of France is Paris, caf\u00e9 \U0001f600. " * 6


@pytest.fixture(scope="module")
def exact(pocket: Path) -> Iterator[httpx.Client]:
    """A deterministic server with a prompt cache."""
    with serving_pocket(pocket, deterministic=True) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(pocket: Path) -> TextTokenizer:
    return load_tokenizer(pocket, bos_token_id=None, add_bos=False)


def post(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"model": "pocket", "prompt": PROMPT, "temperature": 0, "echo": True, "logprobs": 2, **fields}
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def test_a_prompt_is_judged_without_generating(exact: httpx.Client) -> None:
    reply = post(exact, max_tokens=0)
    (choice,) = reply["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == PROMPT
    assert choice["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 0
    assert {len(values) for values in logprobs.values()} == {reply["usage"]["prompt_tokens"]}
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    judged = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    for token, logprob, top in list(judged)[1:]:
        assert top[token] == logprob, "the same float"
        assert logprob <= max(top.values()) < 0
        assert 1 <= len(top) <= 3
    placed = zip(logprobs["text_offset"], logprobs["tokens"], strict=True)
    whole = [(offset, token) for offset, token in placed if "\ufffd" not in token]
    assert all(PROMPT[offset:].startswith(token) for offset, token in whole)
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


def test_a_generated_text_is_judged_as_it_was_drawn(exact: httpx.Client, tokenizer: TextTokenizer) -> None:
    """Bit for bit: one token at a time, and in chunks of a prompt."""
    prompt = list(tokenizer.encode(PROMPT, add_special_tokens=False))
    drawn = post(exact, prompt=prompt, max_tokens=40, ignore_eos=True)["choices"][0]
    ids = [*prompt, *tokenizer.encode(drawn["text"].removeprefix(PROMPT), add_special_tokens=False)]
    judged = post(exact, prompt=ids, max_tokens=0)["choices"][0]["logprobs"]
    assert judged["tokens"] == drawn["logprobs"]["tokens"], "the text is not tokenized as it was generated"
    assert judged["token_logprobs"] == drawn["logprobs"]["token_logprobs"]
    assert judged["top_logprobs"] == drawn["logprobs"]["top_logprobs"]
    assert judged["text_offset"] == drawn["logprobs"]["text_offset"]


def test_a_cached_prompt_is_judged_like_a_cold_one(exact: httpx.Client) -> None:
    first = post(exact, max_tokens=1)
    exact.post("/v1/completions", json={"model": "pocket", "prompt": PROMPT, "max_tokens": 8})
    again = post(exact, max_tokens=1)
    assert again["choices"] == first["choices"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_the_stream_says_the_same(exact: httpx.Client) -> None:
    whole = post(exact, max_tokens=5)["choices"][0]
    body = {"model": "pocket", "prompt": PROMPT, "temperature": 0, "echo": True, "logprobs": 2, "max_tokens": 5}
    chunks = frames(exact.post("/v1/completions", json={**body, "stream": True}).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["text"] == PROMPT
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for key, values in whole["logprobs"].items():
        assert [value for choice in choices if choice["logprobs"] for value in choice["logprobs"][key]] == values


def test_what_an_evaluation_harness_sends(exact: httpx.Client, tokenizer: TextTokenizer) -> None:
    """lm-evaluation-harness: token arrays, one token generated, the continuation's sum of log-probabilities."""
    texts = ("23 + 58 = 81", "23 + 58 = 12")
    prompts = [list(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    reply = post(exact, prompt=prompts, max_tokens=1, logprobs=1, seed=1234)
    sums = []
    for choice, prompt in zip(reply["choices"], prompts, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"]
        assert len(logprobs) == len(prompt) + 1
        sums.append(sum(logprobs[1:-1]))
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert all(value < 0 for value in sums)


def test_every_choice_carries_the_prompt(exact: httpx.Client) -> None:
    choices = post(exact, max_tokens=3, n=2, temperature=1, seed=5)["choices"]
    first, second = (choice["logprobs"]["token_logprobs"][:-3] for choice in choices)
    assert first == second
    assert len(first) > 20


def test_a_prompt_of_one_token(exact: httpx.Client) -> None:
    logprobs = post(exact, prompt=[65], max_tokens=0)["choices"][0]["logprobs"]
    assert (logprobs["token_logprobs"], logprobs["top_logprobs"]) == ([None], [None])


def test_the_best_of_several_candidates(exact: httpx.Client) -> None:
    sampled = {
        "prompt": "Tell me", "echo": False, "temperature": 1.0, "seed": 2, "max_tokens": 12, "logprobs": 0, "stop": "e",
    }  # fmt: skip
    every = post(exact, **sampled, n=4)["choices"]

    def mean(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values) if values else float("-inf")

    ranked = sorted(every, key=mean, reverse=True)
    by_sum = sorted(every, key=lambda choice: sum(choice["logprobs"]["token_logprobs"]), reverse=True)
    assert ranked[:2] != by_sum[:2], "sums, which prefer the short, would choose the same"
    best = post(exact, **sampled, n=2, best_of=4)
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in ranked[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] > sum(len(choice["logprobs"]["tokens"]) for choice in best["choices"])
    plain = post(exact, **{**sampled, "logprobs": None}, n=2, best_of=4)
    assert [choice["logprobs"] for choice in plain["choices"]] == [None, None]
    assert [choice["text"] for choice in plain["choices"]] == [choice["text"] for choice in best["choices"]]


def with_marks(marks: tuple[str, str, str]) -> TextTokenizer:
    definition = Tokenizer.from_str(tokenizer_json().decode())
    definition.add_special_tokens([AddedToken(mark, special=True) for mark in (*marks, "<|file_sep|>")])
    return TextTokenizer(definition.to_str().encode(), bos_token_id=None, add_bos=False)


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks[0])
def test_filling_in_the_middle(marks: tuple[str, str, str]) -> None:
    tokenizer = with_marks(marks)
    infill = find_infill(tokenizer)
    assert infill is not None
    assert infill.ends == (tokenizer.id_of("<|file_sep|>"),)

    async def encode() -> list[tuple[int, ...]]:
        encoder = PromptEncoder(tokenizer, None, WorkPool(), max_context=64, empty_prompt=None)
        return await encoder.encode_infills(["hello", tuple(ids("he"))], " world")

    def ids(text: str) -> tuple[int, ...]:
        return tokenizer.encode(text, add_special_tokens=False)

    before, between, after = (tokenizer.id_of(mark) for mark in marks)
    assert asyncio.run(encode()) == [
        (before, *ids("hello"), between, *ids(" world"), after),
        (before, *ids("he"), between, *ids(" world"), after),
    ]


def test_a_suffix_is_put_behind_and_ends_what_is_filled_in() -> None:
    tokenizer, driver = with_marks(MARKS[0]), make_driver(saying("x"))
    made = lambda: make_service(driver, tokenizer=tokenizer)  # noqa: E731
    with serving(made, driver.close, Limits(drain_s=1.0)) as (port, _):
        body = {"model": "scripted", "prompt": "hello", "suffix": " world", "stop_token_ids": [5]}
        response = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body)
    assert response.status_code == 200, response.text
    (request,) = driver.submitted
    assert tokenizer.decode_whole(request.prompt) == "<|fim_prefix|>hello<|fim_suffix|> world<|fim_middle|>"
    assert request.sampling.stop_token_ids == (5, tokenizer.id_of("<|file_sep|>"))


def test_models_that_cannot_fill_in_say_so() -> None:
    assert find_infill(make_tokenizer()) is None
    encoder = PromptEncoder(make_tokenizer(), None, WorkPool(), max_context=64, empty_prompt=None)
    with pytest.raises(ApiError) as caught:
        asyncio.run(encoder.encode_infills(["a"], "b"))
    assert (caught.value.problem.param, caught.value.problem.code) == ("suffix", "unsupported_parameter")
