"""The gateway over the real runtime, on the model whose every token a Python function predicts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ortserve.gateway.http.server import Limits
from ortserve.gateway.served.service import open_service
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.opening import open_driver
from tests.gateway.running import serving
from tests.gateway.synthetic import expected, write_synthetic_text_model
from tests.waiting import wait_for

PROMPTS = [bytes((33 + place * 7 + step * 5) % 67 + 33 for step in range(1 + place % 23)) for place in range(96)]
LENGTH = 24


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_synthetic_text_model(tmp_path_factory.mktemp("synthetic"))
    driver = open_driver(folder, EngineConfig(max_rows=8, num_threads=1))
    with serving(lambda: open_service(folder, driver), driver.close, Limits(drain_s=1.0)) as (port, _):
        yield f"http://127.0.0.1:{port}"


def body(prompt: bytes, **fields: Any) -> dict[str, Any]:
    return {"model": "synthetic", "prompt": prompt.decode(), "temperature": 0, "max_tokens": LENGTH, **fields}


def health(url: str) -> dict[str, Any]:
    state: dict[str, Any] = httpx.get(f"{url}/health").json()
    return state


def test_many_streams_at_once_each_get_their_own_tokens(url: str) -> None:
    async def one(client: httpx.AsyncClient, prompt: bytes) -> str:
        async with client.stream("POST", f"{url}/v1/completions", json=body(prompt, stream=True)) as response:
            assert response.status_code == 200
            lines = [line async for line in response.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])

    async def all_of_them() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits) as client:
            return await asyncio.gather(*(one(client, prompt) for prompt in PROMPTS))

    assert asyncio.run(all_of_them()) == [expected(prompt, LENGTH) for prompt in PROMPTS]


def test_a_list_of_prompts_is_a_batch(url: str) -> None:
    prompts = PROMPTS[:12]
    fields = {**body(b""), "prompt": [prompt.decode() for prompt in prompts]}
    reply = httpx.post(f"{url}/v1/completions", json=fields).json()
    assert [choice["text"] for choice in reply["choices"]] == [expected(prompt, LENGTH) for prompt in prompts]
    assert reply["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_logprobs_are_of_the_drawn_tokens(url: str) -> None:
    (choice,) = httpx.post(f"{url}/v1/completions", json=body(PROMPTS[5], logprobs=3)).json()["choices"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob == max(top.values())


def test_a_stop_string_frees_the_row(url: str) -> None:
    text = expected(PROMPTS[5], LENGTH)
    stop = text[3:5]
    fields = body(PROMPTS[5], stop=stop, max_tokens=200, ignore_eos=True)
    (choice,) = httpx.post(f"{url}/v1/completions", json=fields).json()["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    assert_idle(url)


def test_leaving_frees_every_row(url: str) -> None:
    fields = body(b"!", n=8, max_tokens=200, ignore_eos=True, stream=True)
    with httpx.stream("POST", f"{url}/v1/completions", json=fields) as response:
        next(response.iter_bytes())
    assert_idle(url)


def assert_idle(url: str) -> None:
    wait_for(lambda: not (health(url)["running"] or health(url)["waiting"]))


def test_sampled_choices_repeat_by_seed(url: str) -> None:
    fields = body(b"seed", n=4, seed=11, temperature=1.5, max_tokens=12)
    texts = [
        [choice["text"] for choice in httpx.post(f"{url}/v1/completions", json=fields).json()["choices"]]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1
