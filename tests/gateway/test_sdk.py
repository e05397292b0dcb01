"""OpenAI's own client, unmodified: plain, streamed, its stream helper, strict validation, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from ortserve.gateway.http.watch import Patience
from tests.gateway.conftest import REPLY
from tests.gateway.running import Running, running
from tests.gateway.scripted import Held, make_driver

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    """Every reply and chunk is validated against the SDK's types."""
    url = f"{server.url}/v1"
    with OpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


def test_plain(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="scripted", messages=MESSAGES, n=2, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in reply.choices] == [REPLY, REPLY]
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert reply._request_id


def test_prompt_caching_as_the_client_types_it(client: OpenAI, server: Running) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {
            "role": "system",
            "content": [
                {"type": "text", "text": "hello world", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}
            ],
        },
        *MESSAGES,
    ]
    reply = client.chat.completions.create(
        model="scripted",
        messages=messages,
        prompt_cache_key="k",
        prompt_cache_options={"mode": "implicit", "ttl": "30m"},
        prompt_cache_retention="24h",
        extra_body={"cache_salt": "s"},
    )
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cache_write_tokens == 0
    hints = server.driver.submitted[-1].cache
    assert [point.ttl_s for point in hints.breakpoints] == [43_200, 1800]
    assert hints.affinity == "k"


@pytest.mark.parametrize("num_choices", [1, 3])
@pytest.mark.parametrize("logprobs", [False, True])
def test_stream(client: OpenAI, num_choices: int, logprobs: bool) -> None:
    texts = [""] * num_choices
    last = None
    with client.chat.completions.create(
        model="scripted",
        messages=MESSAGES,
        n=num_choices,
        logprobs=logprobs,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            last = chunk
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert texts == [REPLY] * num_choices
    assert last is not None
    assert last.usage is not None


def test_the_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="scripted", messages=MESSAGES, n=2, logprobs=True, stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.done") == 2
    assert [choice.message.content for choice in final.choices] == [REPLY, REPLY]
    assert [choice.message.role for choice in final.choices] == ["assistant", "assistant"]
    assert [choice.finish_reason for choice in final.choices] == ["stop", "stop"]
    assert final.usage is not None
    assert final.usage.completion_tokens > 0


def test_completions(client: OpenAI) -> None:
    reply = client.completions.create(model="scripted", prompt=["a", "b"], max_tokens=50, logprobs=2)
    assert [choice.text for choice in reply.choices] == [REPLY, REPLY]
    # The SDK's type has no null finish_reason in chunks, though OpenAI sends it: validation does not apply here.
    with (
        OpenAI(base_url=client.base_url, api_key="any") as lenient,
        lenient.completions.create(model="scripted", prompt="a", max_tokens=50, stream=True, logprobs=1) as stream,
    ):
        assert "".join(chunk.choices[0].text for chunk in stream) == REPLY


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == "scripted"


def test_errors_become_the_sdk_s_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Expected a value <= 2, but got 200") as bad:
        client.chat.completions.create(model="scripted", messages=MESSAGES, temperature=200, stream=True)
    assert bad.value.code == "decimal_above_max_value"
    assert bad.value.param == "temperature"
    assert bad.value.request_id
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="It generates text"):
        client.embeddings.create(model="scripted", input="x", encoding_format="float")
    with pytest.raises(openai.NotFoundError, match="Invalid URL"):
        client.moderations.create(input="x")


def test_the_async_client(server: Running) -> None:
    async def main() -> str:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            text = ""
            async with await client.chat.completions.create(model="scripted", messages=MESSAGES, stream=True) as stream:
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
            return text

    assert asyncio.run(main()) == REPLY


def test_comment_lines_do_not_disturb_the_sdk() -> None:
    script, lines = Held("ab", 1), list[str]()
    with (
        running(make_driver(script), patience=Patience(ping_s=0.05)) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="any") as client,
        client.chat.completions.create(model="scripted", messages=MESSAGES, stream=True) as stream,
    ):
        read = stream.response.iter_bytes

        def watched() -> Iterator[bytes]:
            for data in read():
                lines.extend(data.decode().split("\n"))
                if lines.count(": ping") >= 2:
                    script.release()
                yield data

        stream.response.iter_bytes = watched  # type: ignore[assignment, method-assign]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "ab"
    assert lines.count(": ping") >= 2
