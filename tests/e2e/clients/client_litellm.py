"""litellm, through its `openai/` route."""

import json

import litellm
import pytest
from served import BASE_URL, KEY, MODEL, SUM, TOOL, WEATHER

ROUTE = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": KEY}


def ask(text):
    return [{"role": "user", "content": text}]


def test_completion():
    reply = litellm.completion(messages=ask(SUM), temperature=0, **ROUTE)
    assert "4" in reply.choices[0].message.content
    assert reply.usage.total_tokens > 0


def test_stream():
    stream = litellm.completion(messages=ask(SUM), temperature=0, stream=True, **ROUTE)
    assert "4" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_tools():
    reply = litellm.completion(messages=ask(WEATHER), tools=[TOOL], temperature=0, **ROUTE)
    (call,) = reply.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_responses():
    reply = litellm.responses(input=SUM, temperature=0, **ROUTE)
    assert reply.status == "completed"


def test_errors_are_the_clients_own():
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=ask(SUM), temperature=9, **ROUTE)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=ask(SUM), **{**ROUTE, "model": "openai/nothing"})
