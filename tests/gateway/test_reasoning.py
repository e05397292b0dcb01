"""Reasoning apart from the answer: where it begins and ends, in replies, streams and counts."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.gateway.prompts.reasoning import FORMATS, ReasoningFormat, detect_reasoning
from ortserve.gateway.replies.pieces import ShownToken
from ortserve.gateway.replies.reply import ReplyPart, ReplyPlan, ReplyReader
from ortserve.gateway.tools.hermes import HermesFormat
from tests.gateway.running import running
from tests.gateway.scripted import CHATML, make_driver, make_tokenizer, saying

THINK = ReasoningFormat("<think>", "</think>")
CALL = '<tool_call>{"name": "f", "arguments": {"n": 1}}</tool_call>'
Sum = tuple[str, str, list[tuple[int, str | None, str]]]


def read(text: str, *, is_open: bool = False, pieces: list[str] | None = None, tools: bool = False) -> Sum:
    """Reasoning, content and calls of a reply."""
    plan = ReplyPlan(THINK, is_open, HermesFormat() if tools else None)
    reader = ReplyReader(plan)
    parts = [part for piece in pieces or [text] for part in reader.feed(piece)] + reader.finish()
    calls: dict[int, tuple[str | None, str]] = {}
    for delta in (delta for part in parts for delta in part.calls):
        name, arguments = calls.get(delta.index, (delta.name, ""))
        calls[delta.index] = (name, arguments + delta.arguments)
    reasoning, content = "".join(part.reasoning for part in parts), "".join(part.text for part in parts)
    return reasoning, content, [(index, *call) for index, call in calls.items()]


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "content"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, "Hm.", "Yes."),
        ("\n<think>a</think>b", False, "a", "b"),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("</think>Yes.", True, "", "Yes."),
        ("Still thinking, </thin", True, "Still thinking, </thin", ""),
        ("<think>cut ", False, "cut", ""),
        ("Plain <think> words </think>.", False, "", "Plain <think> words </think>."),
        ("  Plain", False, "", "  Plain"),
        ("<thinking>", False, "", "<thinking>"),
        ("", False, "", ""),
        ("<think>a</think>b</think>", False, "a", "b</think>"),
    ],
)
def test_where_reasoning_ends(text: str, is_open: bool, reasoning: str, content: str) -> None:
    assert read(text, is_open=is_open) == (reasoning, content, [])
    assert read(text, is_open=is_open, pieces=list(text) or [""]) == (reasoning, content, [])


@given(st.data())
def test_pieces_never_matter(data: st.DataObject) -> None:
    words = st.sampled_from(["<think>", "</think>", "<thi", "nk>", CALL, "<tool_", "\n", " ", "word", "é", "<", "/"])
    text = "".join(data.draw(st.lists(words, max_size=10)))
    is_open = data.draw(st.booleans())
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text))))})
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    assert read(text, is_open=is_open, tools=True, pieces=pieces) == read(text, is_open=is_open, tools=True)


def test_calls_come_after_reasoning() -> None:
    assert read(f"<think>I call.</think>\n{CALL}", tools=True) == ("I call.", "", [(0, "f", '{"n": 1}')])
    # What is called within the channel is a thought.
    assert read(f"<think>{CALL}</think>ok", tools=True) == (CALL, "ok", [])


def test_only_what_may_be_the_closing_marker_is_held_back() -> None:
    reader = ReplyReader(ReplyPlan(THINK, is_reasoning_open=True))
    shown = [reader.feed(piece) for piece in ("a < b", " </th", "e</think", ">\n\n", "yes")]
    assert [part for parts in shown for part in parts] == [
        ReplyPart(reasoning="a < b"), ReplyPart(reasoning=" </the"), ReplyPart(text="yes"),
    ]  # fmt: skip
    assert reader.thought_end == len("a < b </the</think>")


def test_tokens_follow_their_text() -> None:
    texts = ["<think>", "a", "</think>", "\n", "b", "c"]
    reader = ReplyReader(ReplyPlan(THINK))
    offsets = [sum(map(len, texts[:place])) for place in range(len(texts))]
    tokens = [ShownToken(text, text.encode(), -1.0, (), offset) for text, offset in zip(texts, offsets, strict=True)]
    parts = [part for text, token in zip(texts, tokens, strict=True) for part in reader.feed(text, (token,))]
    assert [token.text for part in [*parts, *reader.finish()] for token in part.tokens] == ["b", "c"]


def test_a_token_across_the_border_is_cut() -> None:
    reader = ReplyReader(ReplyPlan(THINK, is_reasoning_open=True))
    (part,) = reader.feed("a</think> yes", (ShownToken("a</think> yes", b"a</think> yes", -1.0, (), 0),))
    (token,) = part.tokens
    assert (token.text, token.data) == ("yes", b"yes")


def test_the_channel_is_read_from_the_template() -> None:
    for format_ in FORMATS:
        assert detect_reasoning(f"{{{{ '{format_.opener}' }}}} ... {{{{ '{format_.closer}' }}}}") == format_
    assert detect_reasoning(CHATML) is None


@pytest.mark.parametrize(
    ("prompt", "unfinished", "is_open"),
    [
        ("user hi assistant <think>\n", "", True),
        ("user hi assistant <think>\n\n</think>\n\n", "", False),
        ("user <think> hi assistant", "", False),
        ("... <think>so far", "<think>so far", True),
        ("... <think>so</think> far", "<think>so</think> far", False),
    ],
)
def test_prompts_that_open_the_channel(prompt: str, unfinished: str, is_open: bool) -> None:
    assert THINK.is_open_after(prompt, unfinished) == is_open


TEMPLATE = CHATML + "{% if enable_thinking | default(true) %}{{ '<think>\\n' }}{% endif %}{# </think> #}"
REPLY = "so it is\n</think>\n\nhello world"
PATH = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], **fields}


def frames(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.split("\n\n")[:-2]]


@pytest.mark.parametrize("tokens_per_step", [1, 4, 100])
@pytest.mark.parametrize("logprobs", [False, True])
def test_replies_show_reasoning_under_both_names(tokens_per_step: int, logprobs: bool) -> None:
    driver = make_driver(saying(REPLY, tokens_per_step=tokens_per_step))
    with running(driver, template=TEMPLATE) as server, httpx.Client(base_url=server.url) as http:
        reply = http.post(PATH, json=body(logprobs=logprobs)).json()
        message = reply["choices"][0]["message"]
        assert message["reasoning_content"] == message["reasoning"] == "so it is"
        assert message["content"] == "hello world"
        tokenizer = make_tokenizer()
        num_reasoning = len(tokenizer.encode("so it is\n</think>", add_special_tokens=False))
        assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == num_reasoning
        chunks = frames(
            http.post(PATH, json=body(stream=True, logprobs=logprobs, stream_options={"include_usage": True})).text
        )
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "so it is"
        assert all(delta.get("reasoning_content") == delta.get("reasoning") for delta in deltas)
        assert "".join(delta.get("content", "") for delta in deltas) == "hello world"
        assert not any("content" in delta and "reasoning" in delta for delta in deltas)
        assert chunks[-1]["usage"] == reply["usage"]
        if logprobs:
            shown = reply["choices"][0]["logprobs"]["content"]
            assert bytes(byte for entry in shown for byte in entry["bytes"]).decode() == "hello world"


def test_calls_come_with_the_reasoning_before_them() -> None:
    call = '{"name": "f", "arguments": {"n": 1}}'
    tools = [{"type": "function", "function": {"name": "f"}}]
    driver = make_driver(saying(f"so it is\n</think>\n\n{call}"))
    with running(driver, template=TEMPLATE) as server, httpx.Client(base_url=server.url) as http:
        (choice,) = http.post(PATH, json=body(tools=tools)).json()["choices"]
        deltas = [
            chunk["choices"][0]["delta"] for chunk in frames(http.post(PATH, json=body(tools=tools, stream=True)).text)
        ]
    message = choice["message"]
    assert message["reasoning_content"] == message["reasoning"] == "so it is"
    assert message["content"] is None
    assert [one["function"]["name"] for one in message["tool_calls"]] == ["f"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "so it is"


def test_reasoning_that_never_ends() -> None:
    driver = make_driver(saying("so it is and so it is"))
    with running(driver, template=TEMPLATE) as server, httpx.Client(base_url=server.url) as http:
        reply = http.post(PATH, json=body(max_tokens=6)).json()
        (choice,) = reply["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] == ""
        assert choice["message"]["reasoning"]
        usage = reply["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == usage["completion_tokens"] == 6


def test_reasoning_can_be_left_out_or_switched_off() -> None:
    driver = make_driver(saying(REPLY))
    with running(driver, template=TEMPLATE) as server, httpx.Client(base_url=server.url) as http:
        reply = http.post(PATH, json=body(include_reasoning=False)).json()
        assert set(reply["choices"][0]["message"]) == {"role", "content", "refusal", "annotations"}
        assert reply["choices"][0]["message"]["content"] == "hello world"
        assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
        streamed = http.post(PATH, json=body(include_reasoning=False, stream=True)).text
        assert "reasoning" not in streamed
        for fields in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
            reply = http.post(PATH, json=body(**fields)).json()
            assert reply["choices"][0]["message"]["content"] == REPLY  # the prompt has not opened the channel
            assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
