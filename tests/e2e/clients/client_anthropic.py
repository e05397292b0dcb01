"""Anthropic's Python client on /v1/messages."""

import anthropic
import pytest
from served import FUNCTION, KEY, MODEL, PARAMETERS, SUM, URL, WEATHER

GREEDY = {"temperature": 0}  # this generation of the client has no such argument
TOOL = {"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": PARAMETERS}


@pytest.fixture
def client():
    with anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, _strict_response_validation=True) as one:
        yield one


def ask(text):
    return [{"role": "user", "content": text}]


def test_a_message(client):
    reply = client.messages.create(model=MODEL, max_tokens=50, messages=ask(SUM), extra_body=GREEDY)
    assert "4" in reply.content[0].text
    assert reply.stop_reason == "end_turn"


def test_a_streamed_message(client):
    with client.messages.stream(model=MODEL, max_tokens=50, messages=ask(SUM), extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
    assert "4" in text
    assert stream.get_final_message().usage.output_tokens > 0


def test_count_tokens(client):
    counted = client.messages.count_tokens(model=MODEL, messages=ask(SUM)).input_tokens
    usage = client.messages.create(model=MODEL, max_tokens=1, messages=ask(SUM)).usage
    assert counted == usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens


def test_tools(client):
    asked = {"model": MODEL, "max_tokens": 200, "tools": [TOOL], "extra_body": GREEDY}
    reply = client.messages.create(messages=ask(WEATHER), **asked)
    assert reply.stop_reason == "tool_use"
    (call,) = [block for block in reply.content if block.type == "tool_use"]
    assert call.input == {"city": "Paris"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    turns = [*ask(WEATHER), {"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(messages=turns, **asked).content


def test_streamed_tools(client):
    with client.messages.stream(
        model=MODEL, max_tokens=200, tools=[TOOL], messages=ask(WEATHER), extra_body=GREEDY
    ) as stream:
        reply = stream.get_final_message()
    (call,) = [block for block in reply.content if block.type == "tool_use"]
    assert call.input == {"city": "Paris"}


def test_errors_are_the_clients_own(client):
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model=MODEL, max_tokens=0, messages=ask(SUM))
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="nothing", max_tokens=1, messages=ask(SUM))
