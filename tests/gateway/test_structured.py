"""Replies that must have a form have it, by every field that says so; a form that cannot be enforced is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.gateway.pocket import CONVERSATION, serving_pocket

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["happy", "sad"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def http(pocket: Path) -> Iterator[httpx.Client]:
    with serving_pocket(pocket) as url, httpx.Client(base_url=url) as client:
        yield client


def asked(http: httpx.Client, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    body: dict[str, Any] = {"model": "pocket", "max_tokens": 200, "temperature": 1.0, "seed": 5}
    body |= {"prompt": "A person:"} if path == "/v1/completions" else {"messages": CONVERSATION}
    return http.post(path, json=body | fields)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def schema_format(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, **more}}


@pytest.mark.parametrize("more", [{}, {"strict": True}, {"strict": False}, {"strict": None, "description": "a person"}])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_schema_is_followed_whether_strict_or_not(http: httpx.Client, path: str, more: dict[str, Any]) -> None:
    reply = json.loads(text_of(asked(http, path, response_format=schema_format(PERSON, **more))))
    jsonschema.validate(reply, PERSON)


def test_a_json_object_is_an_object(http: httpx.Client) -> None:
    for seed in range(3):
        response = asked(http, response_format={"type": "json_object"}, seed=seed, temperature=0.5)
        content = response.json()["choices"][0]["message"]["content"]
        if response.json()["choices"][0]["finish_reason"] == "stop":
            assert isinstance(json.loads(content), dict)
        else:
            assert content.lstrip().startswith("{")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("field", "value", "pattern"),
    [
        ("guided_regex", "[a-f]{3}-[0-9]{2}", r"[a-f]{3}-[0-9]{2}"),
        ("guided_choice", ["yes", "no", 'may"be'], r'yes|no|may"be'),
        ("guided_grammar", 'start: "<" WORD ">"\nWORD: /[a-z]{2,4}/', r"<[a-z]{2,4}>"),
        ("guided_json", {"type": "integer", "minimum": 10, "maximum": 99}, r"[0-9]{2}"),
    ],
)
def test_guided_fields_are_followed(http: httpx.Client, path: str, field: str, value: Any, pattern: str) -> None:
    assert re.fullmatch(pattern, text_of(asked(http, path, **{field: value})))


def test_streamed_and_whole_replies_are_the_same(http: httpx.Client) -> None:
    fields: dict[str, Any] = {"response_format": schema_format(PERSON)}
    whole = text_of(asked(http, **fields))
    body = {"model": "pocket", "messages": CONVERSATION, "max_tokens": 200, "temperature": 1.0, "seed": 5, **fields}
    with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        frames = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    pieces = [json.loads(frame)["choices"][0] for frame in frames]
    assert "".join(piece["delta"].get("content") or "" for piece in pieces) == whole
    assert pieces[-1]["finish_reason"] == "stop"


def test_logprobs_are_there_for_every_token_and_change_none(http: httpx.Client) -> None:
    plain = asked(http, response_format=schema_format(PERSON))
    shown = asked(http, response_format=schema_format(PERSON), logprobs=True, top_logprobs=2)
    assert text_of(plain) == text_of(shown)
    entries = shown.json()["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == text_of(shown)
    assert all(-1000 < entry["logprob"] <= 0 for entry in entries)
    assert plain.json()["usage"]["completion_tokens"] == shown.json()["usage"]["completion_tokens"] == len(entries)


def test_every_choice_follows_the_schema(http: httpx.Client) -> None:
    response = asked(http, response_format=schema_format(PERSON), n=3)
    replies = [json.loads(choice["message"]["content"]) for choice in response.json()["choices"]]
    for reply in replies:
        jsonschema.validate(reply, PERSON)
    assert len({json.dumps(reply) for reply in replies}) > 1


def test_messages_of_anthropic_have_their_own_name_for_it(http: httpx.Client) -> None:
    body = {"model": "pocket", "max_tokens": 200, "messages": [{"role": "user", "content": "Who?"}]}
    for wanted in ({"output_config": {"format": {"type": "json_schema", "schema": PERSON}}},
                   {"output_format": {"type": "json_schema", "schema": PERSON}}):  # fmt: skip
        response = http.post("/v1/messages", json=body | wanted)
        assert response.status_code == 200, response.text
        jsonschema.validate(json.loads(response.json()["content"][0]["text"]), PERSON)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema", "Missing"),
        ({"response_format": schema_format(PERSON, name="no spaces")}, "response_format.json_schema.name", "letters"),
        ({"response_format": schema_format({"type": "object", "unevaluatedProperties": False})},
         "response_format.json_schema.schema", "unevaluatedProperties"),
        ({"response_format": schema_format({"not": {"type": "string"}, "x-guidance": {"lenient": True}})},
         "response_format.json_schema.schema", '"not"'),
        ({"response_format": schema_format({"$ref": "#/$defs/gone"})}, "response_format.json_schema.schema", "gone"),
        ({"response_format": schema_format({"$ref": "#"})}, "response_format.json_schema.schema", "'$ref'"),
        ({"response_format": schema_format({"$ref": "https://example.com/a.json"})},
         "response_format.json_schema.schema", "example.com"),
        ({"response_format": schema_format({"type": "banana"})}, "response_format.json_schema.schema", "banana"),
        ({"response_format": schema_format({"enum": []})}, "response_format.json_schema.schema", "Unsatisfiable"),
        ({"response_format": schema_format({"type": "string", "pattern": "(?=a)b"})},
         "response_format.json_schema.schema", "look-around"),
        ({"response_format": schema_format(nested(400))}, "response_format.json_schema.schema", "recursion"),
        ({"response_format": schema_format({"enum": [f"word{n}" for n in range(50_000)]})},
         "response_format.json_schema.schema", "bytes"),
        ({"guided_regex": "("}, "guided_regex", "unclosed"),
        ({"guided_regex": "a{1000000000}"}, "guided_regex", "no end"),
        ({"guided_regex": ""}, "guided_regex", "no text"),
        ({"guided_grammar": "start: nowhere"}, "guided_grammar", "nowhere"),
        ({"guided_grammar": "start: start"}, "guided_grammar", "grammar"),
        ({"guided_choice": [1]}, "guided_choice[0]", "string"),
        ({"guided_choice": [""]}, "guided_choice[0]", "empty"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "only"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "only"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs", "guided_regex"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str, words: str
) -> None:
    asked(http, guided_regex="warm").raise_for_status()  # the tokenizer is read once
    response = asked(http, **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
