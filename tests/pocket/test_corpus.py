"""The corpus keeps its split, judges replies and agrees with the chat template; needs neither torch nor weights."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import astuple
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as configured
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from examples.pocket.corpus import (
    FAMILIES,
    draw,
    evaluation_samples,
    prompt_text,
    segments,
    training_samples,
)
from examples.pocket.family_dialogue import is_practised
from examples.pocket.family_numbers import arithmetic
from examples.pocket.sample import Message, Sample, is_held_out, is_right, may_evaluate, may_train, parse_calls

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "export" / "pocket"
EQUATION = re.compile(r"(?<![\d.,-])(\d+) ([+-]) (\d+) = (-?\d+)")
few = configured(max_examples=40)
seeds = st.integers(0, 2**32)
families = st.sampled_from(tuple(FAMILIES))


@cache
def trained() -> tuple[Sample, ...]:
    """Some of the samples of the first process of the shipped training."""
    return tuple(islice(training_samples(1000), 1500))


@cache
def asked(family: str) -> tuple[Sample, ...]:
    """Some of the questions by which the shipped model was measured."""
    return tuple(evaluation_samples(family, 7, 40))


def said(sample: Sample) -> list[str]:
    """All that the model is to learn to say."""
    return [text for text, is_trained in segments(sample) if is_trained]


def equations(sample: Sample) -> set[tuple[str, ...]]:
    """The sums and differences that are worked out in a conversation, sums with the smaller number first."""
    found = {match.groups() for text in said(sample) for match in EQUATION.finditer(text)}
    return {(*sorted((a, b), key=int), sign) if sign == "+" else (a, b, sign) for a, sign, b, _ in found}


def test_the_corpus_is_the_one_that_the_shipped_model_was_trained_on() -> None:
    # A change of wording, order or chance changes this digest: the card would then describe another corpus.
    text = json.dumps([[astuple(sample), list(segments(sample))] for sample in trained()[:500]])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "833d8e8e7bf259a2"


def test_the_tokenizer_file_carries_the_template_of_the_corpus() -> None:
    shipped = json.loads((SHIPPED / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    assert shipped == (ROOT / "examples" / "pocket" / "chat_template.jinja").read_text(encoding="utf-8")


@few
@given(families, seeds)
def test_every_family_is_reproducible_and_keeps_its_side_of_the_split(family: str, seed: int) -> None:
    sample = draw(family, random.Random(seed))
    assert sample == draw(family, random.Random(seed))
    assert sample.family == family
    assert may_train(sample)
    assert not may_evaluate(sample)
    assert not any(is_held_out(key) for key in sample.keys)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_asked_in_the_evaluation_is_never_trained(family: str) -> None:
    trained_keys = {key for sample in trained() for key in sample.keys}
    for sample in asked(family):
        assert may_evaluate(sample)
        assert not may_train(sample)
        assert sample.keys[-1] not in trained_keys


@pytest.mark.parametrize("family", ["arithmetic", "repeat", "edit", "reverse", "extract", "facts"])
def test_no_evaluated_question_occurs_in_any_turn_of_the_training(family: str) -> None:
    seen = {message.content for sample in trained() for message in sample.messages if message.role == "user"}
    assert not seen & {sample.messages[-1].content for sample in asked(family)}


def test_no_evaluated_sum_is_worked_out_anywhere_in_the_training() -> None:
    worked_out = set[tuple[str, ...]]().union(*(equations(sample) for sample in trained()))
    assert len(worked_out) > 200
    for sample in asked("arithmetic"):
        assert equations(sample)
        assert not equations(sample) & worked_out


@given(seeds)
def test_a_sum_says_what_is_true(seed: int) -> None:
    match = EQUATION.fullmatch(arithmetic(random.Random(seed)).answer)
    assert match is not None
    first, sign, second, result = match.groups()
    assert int(result) == int(first) + (int(second) if sign == "+" else -int(second))


@pytest.mark.parametrize(
    ("equation", "practised"),
    [
        ("60 + 70 = 130", False),
        ("60 + 7 = 67", True),
        ("7 + 60 = 67", True),
        ("60 - 7 = 53", True),
        ("7 - 60 = -53", False),
    ],
)
def test_the_sums_that_follow_ups_practise_are_known(equation: str, practised: bool) -> None:
    assert is_practised(equation) is practised


@few
@given(families, seeds)
def test_the_expected_reply_is_right(family: str, seed: int) -> None:
    sample = draw(family, random.Random(seed))
    assert is_right(sample, sample.answer)
    assert is_right(sample, sample.answer + "\n")


@few
@given(families, seeds, st.data())
def test_a_reply_with_one_word_less_or_another_answer_is_wrong(family: str, seed: int, data: st.DataObject) -> None:
    sample = draw(family, random.Random(seed))
    other = draw(family, random.Random(data.draw(seeds)))
    if sample.check != "story":
        assert is_right(sample, other.answer) == (sample.answer == other.answer)
        assert not is_right(sample, f"{sample.answer} x")
    words = sample.answer.split(" ")
    assert not is_right(sample, " ".join(words[: len(words) // 2]))
    assert not is_right(sample, "")


def test_tool_calls_are_judged_by_their_meaning() -> None:
    def call(body: str) -> str:
        return f"<tool_call>\n{body}\n</tool_call>"

    right = call('{"name": "get_time", "arguments": {"city": "Oslo", "n": 1}}')
    sample = Sample("tool call", (Message("user", "?"),), right, ("k",), ("{}",), "calls")
    assert is_right(sample, call('{"arguments": {"n": 1,"city":"Oslo"}, "name": "get_time"}'))
    assert not is_right(sample, call('{"name": "get_time", "arguments": {"city": "Oslo", "n": 2}}'))
    assert not is_right(sample, f"Sure! {right}")
    assert not is_right(sample, f"{right}\n{right}")
    assert not is_right(sample, call('{"name": "get_time", "arguments": {"city": "Oslo"'))
    assert parse_calls("no call at all") is None


def test_stories_are_judged_by_their_form() -> None:
    sample = next(sample for sample in asked("story"))
    sentence = f"There is a lot to say about {sample.topic}."
    assert not is_right(sample, " ".join([sentence] * 40))
    assert not is_right(sample, sentence)
    assert not is_right(sample, sample.answer.rstrip('.!?"'))


def environment() -> ImmutableSandboxedEnvironment:
    """As the usual readers of tokenizer_config.json set it up."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


TEMPLATE = environment().from_string((ROOT / "examples" / "pocket" / "chat_template.jinja").read_text(encoding="utf-8"))


def plain(message: Message) -> dict[str, Any]:
    """A message as a client sends it, all of it in `content`."""
    return {"role": message.role, "content": message.content}


def structured(message: Message) -> dict[str, Any]:
    """A message as a client sends it: content in parts, calls as `tool_calls` with the arguments as JSON text."""
    calls: Any = parse_calls(message.content) if message.role == "assistant" else None
    if not calls:
        return {"role": message.role, "content": [{"type": "text", "text": message.content}]}
    functions = [
        {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)} for call in calls
    ]
    tool_calls = [{"id": "call_1", "type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": None, "tool_calls": tool_calls}


@pytest.mark.parametrize("shape", [plain, structured])
@few
@given(family=families, seed=seeds)
def test_the_template_renders_what_was_trained(shape: Any, family: str, seed: int) -> None:
    sample = draw(family, random.Random(seed))
    messages = [shape(message) for message in sample.messages]
    tools = [json.loads(tool) for tool in sample.tools] or None
    assert TEMPLATE.render(messages=messages, tools=tools, add_generation_prompt=True) == prompt_text(sample)
    whole = TEMPLATE.render(messages=[*messages, shape(Message("assistant", sample.answer))], tools=tools)
    assert whole == "".join(text for text, _ in segments(sample))


@few
@given(families, seeds)
def test_only_replies_are_trained_each_up_to_its_end(family: str, seed: int) -> None:
    sample = draw(family, random.Random(seed))
    replies = [message.content for message in sample.messages if message.role == "assistant"]
    assert said(sample) == [f"{reply}<|im_end|>" for reply in (*replies, sample.answer)]
