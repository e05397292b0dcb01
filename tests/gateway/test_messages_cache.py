"""The Messages API with the bundled model: one prompt cache with OpenAI's routes, and tenants apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.pocket import ADMIN, CONVERSATION, RULES, cached, chat, serving_pocket, settle, text_of, written
from tests.gateway.test_messages import COUNT, EPHEMERAL, PATH, block, deltas_of, events_of, said


@pytest.fixture(scope="module")
def url(pocket: Path) -> Iterator[str]:
    with serving_pocket(pocket) as url:
        yield url


@pytest.fixture
def model(url: str) -> Iterator[httpx.Client]:
    """A client of the bundled model with an empty cache."""
    with httpx.Client(base_url=url) as client:
        assert client.post("/admin/cache/clear", headers=ADMIN).status_code == 200
        yield client


def ask(http: httpx.Client, *, key: str | None = None, system: Any = RULES, **fields: Any) -> dict[str, Any]:
    """`CONVERSATION` through the Messages API."""
    body = {
        "model": "pocket", "system": system, "messages": CONVERSATION[1:], "temperature": 0, "max_tokens": 24, **fields,
    }  # fmt: skip
    response = http.post(PATH, json=body, headers={} if key is None else {"x-api-key": key})
    assert response.status_code == 200, response.text
    settle(http)
    if fields.get("stream"):
        events = events_of(response)
        text = "".join(deltas_of(events))
        return {"content": [block(text)], "usage": events[-2][1]["usage"], **events[-2][1]["delta"]}
    reply: dict[str, Any] = response.json()
    return reply


def prompt_tokens(reply: dict[str, Any]) -> int:
    usage = reply["usage"]
    return int(usage["input_tokens"] + usage["cache_creation_input_tokens"] + usage["cache_read_input_tokens"])


@pytest.mark.parametrize("stream", [False, True])
def test_usage_divides_the_prompt(model: httpx.Client, stream: bool) -> None:
    counted = model.post(COUNT, json={"model": "pocket", "system": RULES, "messages": CONVERSATION[1:]}).json()
    num_tokens = counted["input_tokens"]
    first, second = ask(model, stream=stream), ask(model, stream=stream)
    assert prompt_tokens(first) == prompt_tokens(second) == num_tokens
    assert first["usage"]["cache_creation_input_tokens"] == num_tokens
    assert second["usage"]["cache_read_input_tokens"] == num_tokens - 1
    assert first["content"] == second["content"] == [block("23 + 58 = 81")]
    assert first["stop_reason"] == second["stop_reason"] == "end_turn"


def test_a_reply_that_a_stop_string_has_cut(model: httpx.Client) -> None:
    ask(model)
    for stream in (False, True):
        reply = ask(model, stream=stream, stop_sequences=["never", "="])
        assert (reply["content"], reply["stop_sequence"]) == ([block("23 + 58 ")], "=")
        assert reply["usage"]["cache_read_input_tokens"] == prompt_tokens(reply) - 1


def test_both_apis_share_one_cache(model: httpx.Client) -> None:
    first = chat(model)
    reply = ask(model)
    assert reply["usage"]["cache_read_input_tokens"] == first["usage"]["prompt_tokens"] - 1
    assert reply["content"][0]["text"] == text_of(first)
    assert model.post("/admin/cache/clear", headers=ADMIN).status_code == 200
    ask(model)
    assert cached(chat(model)) == first["usage"]["prompt_tokens"] - 1


def test_cache_control_is_a_breakpoint(model: httpx.Client) -> None:
    """It keeps what OpenAI's breakpoint at the same place keeps, and as long; each finds what the other has kept."""
    point = {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "1h"}}
    marked = [{"role": "system", "content": [block(RULES, **point)]}, CONVERSATION[1]]
    hour, minutes = {**EPHEMERAL, "ttl": "1h"}, EPHEMERAL

    def kept() -> list[tuple[int, int]]:
        """The kept blocks: their tokens, and the hundreds of seconds that they stay. Forgets them all."""
        entries = model.get("/admin/cache/entries", headers=ADMIN).json()["data"]
        assert model.post("/admin/cache/clear", headers=ADMIN).status_code == 200
        return sorted((one["num_tokens"], round((one["pinned_s"] or 0) / 100)) for one in entries)

    chat(model, messages=marked)
    through_openai = kept()
    assert {seconds for _, seconds in through_openai} == {36, 0}
    ask(model, system=[block(RULES, cache_control=hour)])
    assert kept() == through_openai
    question = [{"role": "user", "content": [block("What is "), block("23 + 58?", cache_control=minutes)]}]
    ask(model, messages=question)
    assert {seconds for _, seconds in kept()} == {3, 0}
    ask(model, cache_control=minutes)
    assert {seconds for _, seconds in kept()} == {3, 0}

    explicit = chat(model, messages=marked, prompt_cache_options={"mode": "explicit"})
    assert 0 < written(explicit) < explicit["usage"]["prompt_tokens"]
    reply = ask(model, system=[block(RULES, cache_control=hour)])
    assert reply["usage"]["cache_read_input_tokens"] == written(explicit)


def test_tenants_are_apart_and_the_same_through_both_apis(model: httpx.Client) -> None:
    for key in (None, "a", "b"):
        assert ask(model, key=key)["usage"]["cache_read_input_tokens"] == 0
    for key in (None, "a", "b"):
        assert cached(chat(model, key=key)) > 0
    assert ask(model, key="a", cache_salt="s")["usage"]["cache_read_input_tokens"] == 0
    assert cached(chat(model, key="a", cache_salt="s")) > 0
    assert cached(chat(model, key="c")) == 0


def test_the_model_goes_on_from_a_prefill(model: httpx.Client) -> None:
    whole = ask(model)
    text = whole["content"][0]["text"]
    turns = [*CONVERSATION[1:], *said([block(text[:7], cache_control=EPHEMERAL)], "assistant")]
    for stream in (False, True):
        reply = ask(model, messages=turns, stream=stream)
        assert text[:7] + reply["content"][0]["text"] == text
        assert reply["usage"]["cache_read_input_tokens"] > prompt_tokens(whole) - 1
