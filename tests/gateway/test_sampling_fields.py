"""Every sampling field takes effect on every endpoint that generates: the same prompt, asked in four ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.pocket import serving_pocket

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
LONG = 60
SEEDS = range(1, 7)


@dataclass(frozen=True)
class Answer:
    text: str
    num_tokens: int
    is_cut: bool


@dataclass(frozen=True)
class Asker:
    """One endpoint of the bundled model, greedy and short unless said otherwise."""

    http: httpx.Client
    path: str
    limit: str
    base: dict[str, Any]
    read: Callable[[dict[str, Any]], Answer]

    def ask(self, max_tokens: int = LONG, **fields: Any) -> Answer:
        body = {"model": "pocket", **self.base, self.limit: max_tokens, "temperature": 0, **fields}
        response = self.http.post(self.path, json=body)
        assert response.status_code == 200, response.text
        assert "x-ortserve-ignored" not in response.headers
        return self.read(response.json())


def read_chat(reply: dict[str, Any]) -> Answer:
    choice = reply["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return Answer(text, reply["usage"]["completion_tokens"], choice["finish_reason"] == "length")


def read_response(reply: dict[str, Any]) -> Answer:
    text = "".join(part["text"] for item in reply["output"] for part in item.get("content", ()))
    return Answer(text, reply["usage"]["output_tokens"], reply["status"] == "incomplete")


def read_message(reply: dict[str, Any]) -> Answer:
    text = "".join(block["text"] for block in reply["content"])
    return Answer(text, reply["usage"]["output_tokens"], reply["stop_reason"] == "max_tokens")


@pytest.fixture(scope="module")
def http(pocket: Path) -> Iterator[httpx.Client]:
    with serving_pocket(pocket, deterministic=True) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module", params=["chat", "completions", "responses", "messages"])
def asker(http: httpx.Client, request: pytest.FixtureRequest) -> Asker:
    ids = http.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"]
    return {
        "chat": Asker(http, "/v1/chat/completions", "max_tokens", {"messages": MESSAGES}, read_chat),
        "completions": Asker(http, "/v1/completions", "max_tokens", {"prompt": ids}, read_chat),
        "responses": Asker(
            http, "/v1/responses", "max_output_tokens", {"input": MESSAGES, "store": False}, read_response
        ),
        "messages": Asker(http, "/v1/messages", "max_tokens", {"messages": MESSAGES}, read_message),
    }[request.param]


@pytest.fixture(scope="module")
def greedy(asker: Asker) -> Answer:
    answer = asker.ask()
    assert not answer.is_cut, "the model must end its reply by itself here"
    assert answer.num_tokens > 3
    return answer


@pytest.fixture(scope="module")
def ids(asker: Asker, greedy: Answer) -> list[int]:
    found: list[int] = asker.http.post("/tokenize", json={"content": greedy.text}).json()["tokens"]
    return found


def drawn(asker: Asker, **fields: Any) -> list[str]:
    return [asker.ask(24, temperature=1, seed=seed, ignore_eos=True, **fields).text for seed in SEEDS]


def test_the_most_likely_token_is_taken(asker: Asker, greedy: Answer) -> None:
    assert asker.ask() == greedy
    assert {*drawn(asker, top_p=0)} == {asker.ask(24, ignore_eos=True).text} != {*drawn(asker)}


def test_a_seed_repeats(asker: Asker) -> None:
    first = drawn(asker)
    assert drawn(asker) == first
    assert len(set(first)) > 1


def test_top_k_leaves_one_token(asker: Asker) -> None:
    assert {*drawn(asker, top_k=1)} == {asker.ask(24, ignore_eos=True).text} != {*drawn(asker)}


def test_min_p_leaves_one_token(asker: Asker) -> None:
    assert {*drawn(asker, min_p=1)} == {asker.ask(24, ignore_eos=True).text} != {*drawn(asker)}


def test_a_repetition_penalty_changes_the_reply(asker: Asker, greedy: Answer) -> None:
    assert asker.ask(repetition_penalty=1) == greedy
    assert asker.ask(repetition_penalty=20).text != greedy.text


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
def test_penalties_change_a_reply_that_repeats(asker: Asker, ids: list[int], penalty: str) -> None:
    """Some bias makes one token come twice with a lead of less than two: there the penalty of two takes it back."""

    def replies(bias: int) -> list[str]:
        fields = {"logit_bias": {str(ids[0]): bias}, "ignore_eos": True}
        return [asker.ask(3, **fields, **{penalty: value}).text for value in (0, 2)]

    assert any(len(set(replies(bias))) == 2 for bias in range(40))


def test_logit_bias_decides(asker: Asker, greedy: Answer, ids: list[int]) -> None:
    forced = asker.ask(4, logit_bias={str(ids[1]): 100}, ignore_eos=True)
    one = asker.http.post("/detokenize", json={"tokens": [ids[1]] * 4}).json()["content"]
    assert forced.text.strip() == one.strip()
    banned = asker.ask(1, logit_bias={str(ids[0]): -100})
    assert not greedy.text.startswith(banned.text.strip() or " ")


def test_ignore_eos_goes_on(asker: Asker, greedy: Answer) -> None:
    answer = asker.ask(ignore_eos=True)
    assert (answer.num_tokens, answer.is_cut) == (LONG, True)
    assert answer.text.startswith(greedy.text)


def test_min_tokens_holds_the_end_back(asker: Asker, greedy: Answer) -> None:
    least = greedy.num_tokens + 5
    assert asker.ask(min_tokens=least).num_tokens >= least
    assert asker.ask(min_tokens=greedy.num_tokens - 1) == greedy


def test_stop_token_ids_end_the_reply(asker: Asker, greedy: Answer, ids: list[int]) -> None:
    answer = asker.ask(stop_token_ids=[ids[2]])
    assert answer.num_tokens == 3
    assert not answer.is_cut
    assert greedy.text.startswith(answer.text)
    assert len(answer.text) < len(greedy.text)
