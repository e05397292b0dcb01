"""OpenAI's Python client, two generations of it, with strict validation of every response."""

import io
import json

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field
from served import BASE_URL, FUNCTION, KEY, MODEL, PARAMETERS, SUM, TOOL, WEATHER

ASK = [{"role": "user", "content": SUM}]
NO_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "who"}}}
ASK_WEATHER = [{"role": "user", "content": WEATHER}]


class Answer(BaseModel):
    sum: int = Field(ge=0, le=99)
    is_certain: bool


@pytest.fixture
def client():
    with OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0, _strict_response_validation=True) as one:
        yield one


def test_models(client):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).owned_by


def test_chat(client):
    reply = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0)
    assert "4" in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens >= 0
    assert reply.system_fingerprint.startswith("fp_")


def test_streamed_chat_is_the_whole_reply(client):
    whole = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=ASK, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=ASK, temperature=0) as stream:
        kinds = [event.type for event in stream]
    assert kinds[-1] == "content.done"
    assert "4" in stream.get_final_completion().choices[0].message.content


async def ask_async():
    async with AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0, _strict_response_validation=True) as client:
        pieces = []
        async for chunk in await client.chat.completions.create(model=MODEL, messages=ASK, temperature=0, stream=True):
            pieces += [choice.delta.content or "" for choice in chunk.choices]
        return "".join(pieces)


def test_async_client():
    import asyncio

    assert "4" in asyncio.run(ask_async())


def test_choices_logprobs_stop_and_seed(client):
    wanted = {
        "model": MODEL,
        "messages": ASK,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "seed": 7,
        "temperature": 0.8,
        "max_tokens": 12,
    }
    first, second = (client.chat.completions.create(**wanted) for _ in range(2))
    assert [one.message.content for one in first.choices] == [one.message.content for one in second.choices]
    for choice in first.choices:
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)
    stopped = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0, stop=["4"])
    assert "4" not in (stopped.choices[0].message.content or "")
    assert stopped.choices[0].finish_reason == "stop"


def test_parsed_output(client):
    reply = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Answer, temperature=0)
    assert isinstance(reply.choices[0].message.parsed, Answer)


def test_json_schema(client):
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": True}}
    reply = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0, response_format=wanted)
    assert set(json.loads(reply.choices[0].message.content)) == {"sum"}


def test_a_tool_is_called_and_its_result_read(client):
    reply = client.chat.completions.create(model=MODEL, messages=ASK_WEATHER, tools=[TOOL], temperature=0)
    assert reply.choices[0].finish_reason == "tool_calls"
    (call,) = reply.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages = [
        *ASK_WEATHER,
        reply.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "sunny"}'},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL], temperature=0)
    assert answer.choices[0].message.content


def test_streamed_tool_call(client):
    with client.chat.completions.stream(model=MODEL, messages=ASK_WEATHER, tools=[TOOL], temperature=0) as stream:
        for _ in stream:
            pass
    (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_required_tool_is_always_called(client, choice):
    reply = client.chat.completions.create(model=MODEL, messages=ASK, tools=[TOOL], tool_choice=choice, max_tokens=200)
    (call, *_) = reply.choices[0].message.tool_calls
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_completions(client):
    reply = client.completions.create(model=MODEL, prompt=["One two", [5, 6, 7]], max_tokens=4, logprobs=2)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert len(reply.choices[0].logprobs.tokens) == len(reply.choices[0].logprobs.token_logprobs)


def test_echoed_completions():
    # As in the API, the first token has no log-probability; the client's own types do not allow for that.
    client = OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
    echoed = client.completions.create(model=MODEL, prompt="One two", max_tokens=2, echo=True, logprobs=0)
    assert echoed.choices[0].text.startswith("One two")
    assert echoed.choices[0].logprobs.token_logprobs[0] is None


def test_prediction_is_counted(client):
    text = "two plus two is four and three plus three is six"
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": f"Repeat this: {text}"}],
        prediction={"type": "content", "content": text},
        temperature=0,
    )
    details = reply.usage.completion_tokens_details
    assert details.accepted_prediction_tokens >= 0
    assert details.rejected_prediction_tokens >= 0


def test_responses(client):
    reply = client.responses.create(model=MODEL, input=SUM, temperature=0)
    assert "4" in reply.output_text
    assert reply.status == "completed"
    again = client.responses.retrieve(reply.id)
    assert again.output_text == reply.output_text
    follow = client.responses.create(model=MODEL, input="What is 3 + 3?", previous_response_id=reply.id, temperature=0)
    assert follow.previous_response_id == reply.id
    assert [item.type for item in client.responses.input_items.list(follow.id)]
    client.responses.delete(reply.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(reply.id)


def test_responses_stream_helper(client):
    with client.responses.stream(model=MODEL, input=SUM, temperature=0) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "4" in stream.get_final_response().output_text


def test_responses_call_functions(client):
    tool = {"type": "function", **FUNCTION, "strict": False}
    reply = client.responses.create(model=MODEL, input=WEATHER, tools=[tool], temperature=0)
    (call,) = [item for item in reply.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Paris"}


def test_background_responses(client):
    reply = client.responses.create(model=MODEL, input=SUM, background=True, store=True)
    for _ in range(200):
        reply = client.responses.retrieve(reply.id)
        if reply.status not in ("queued", "in_progress"):
            break
    assert reply.status == "completed"


def test_conversations(client):
    conversation = client.conversations.create(items=[{"type": "message", "role": "user", "content": SUM}])
    reply = client.responses.create(model=MODEL, input="And 3 + 3?", conversation=conversation.id, temperature=0)
    assert reply.conversation.id == conversation.id
    assert len(list(client.conversations.items.list(conversation.id))) >= 3
    assert client.conversations.delete(conversation.id).deleted


def test_files_and_batches(client):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = {"model": MODEL, "messages": ASK, "temperature": 0}
    data = io.BytesIO(json.dumps(line).encode() + b"\n")
    file = client.files.create(file=("requests.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    for _ in range(500):
        batch = client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "expired"):
            break
    assert batch.status == "completed", batch.errors
    (result,) = client.files.content(batch.output_file_id).text.splitlines()
    assert "4" in json.loads(result)["response"]["body"]["choices"][0]["message"]["content"]
    client.files.delete(file.id)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"model": "nothing"}, openai.NotFoundError),
        ({"temperature": 9}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, openai.BadRequestError),
        ({"response_format": NO_SCHEMA}, openai.BadRequestError),
    ],
)
def test_errors_are_the_clients_own(client, body, error):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": ASK, **body})
    assert caught.value.body["message"]
    assert caught.value.request_id


def test_every_schema_field_of_a_tool_is_checked(client):
    broken = {"type": "function", "function": {"name": "no spaces allowed", "parameters": PARAMETERS}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=ASK, tools=[broken])
    assert "tools" in str(caught.value.body["param"])
