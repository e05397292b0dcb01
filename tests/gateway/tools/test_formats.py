"""Every format of tool calls: what is read, that pieces never matter, and that what is no call is shown whole."""

# ruff: noqa: E501  # whole replies stay on their lines

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.gateway.tools.deepseek import CALL, CALL_END, CALLS, CALLS_END, SEPARATOR, DeepSeekFormat
from ortserve.gateway.tools.events import CallArguments, CallBegun, CallEnded, Event, Said
from ortserve.gateway.tools.format import ToolFormat, ToolShape
from ortserve.gateway.tools.gemma import FUNCTION_GEMMA, GEMMA_4
from ortserve.gateway.tools.hermes import HermesFormat
from ortserve.gateway.tools.listed import ListedFormat
from ortserve.gateway.tools.llama_json import LlamaJsonFormat, PlainFormat
from ortserve.gateway.tools.mistral import MistralFormat
from ortserve.gateway.tools.pythonic import PythonicFormat
from ortserve.gateway.tools.qwen_xml import QwenXmlFormat
from ortserve.gateway.tools.source import Reader

SCHEMA: dict[str, object] = {"type": "object", "properties": {"s": {"type": "string"}, "n": {"type": "integer"}}}
TOOLS = {name: ToolShape(name, SCHEMA) for name in ("f", "g")}
HERMES, XML, LLAMA, MISTRAL = HermesFormat(), QwenXmlFormat(), LlamaJsonFormat(), MistralFormat()
LISTED, PYTHONIC, PLAIN, DEEPSEEK = ListedFormat(), PythonicFormat(), PlainFormat(), DeepSeekFormat()

# (format, reply, what it is): texts are content, pairs are calls.
CALLS_READ: list[tuple[ToolFormat, str, list[object]]] = [
    (HERMES, '<tool_call>\n{"name": "f", "arguments": {"s": "x"}}\n</tool_call>', [("f", '{"s": "x"}')]),
    (
        HERMES,
        'Let me see.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"arguments":{"n":1},"name":"g"}'
        "</tool_call>\n",
        ["Let me see.", ("f", "{}"), ("g", '{"n":1}')],
    ),
    (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {"s": "</tool_call>\\"}{", "a": [1, {"b": []}]}}</tool_call> done',
        [("f", '{"s": "</tool_call>\\"}{", "a": [1, {"b": []}]}'), "done"],
    ),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"s\\": \\"\\u00e9\\"}"}</tool_call>', [("f", '{"s": "é"}')]),
    (HERMES, '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")]),
    (HERMES, '<tool_call>{"id": 3, "name": "f", "arguments": {}, "x": [1]}</tool_call>', [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"n": 1}</tool_call>', [("f", '{"n": 1}')]),  # a brace is missing
    (HERMES, '<tool_call>\n{"name": "f", "arguments": {"n": 1}}', [("f", '{"n": 1}')]),  # and the closing tag
    (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', [("unknown", "{}")]),
    (HERMES, '<tool_call>{"function": {"name": "f", "arguments": {"n": 2}}}</tool_call>', [("f", '{"n": 2}')]),
    (
        XML,
        "I call.\n<tool_call>\n<function=f>\n<parameter=s>\ntwo \"lines\"\nof text\n</parameter>\n<parameter=n>\n5\n"
        "</parameter>\n<parameter=o>\n{\"a\": [true]}\n</parameter>\n</function>\n</tool_call>",
        ["I call.", ("f", '{"s": "two \\"lines\\"\\nof text", "n": 5, "o": {"a": [true]}}')],
    ),
    (XML, "<tool_call>\n<function=f>\n</function>\n</tool_call>", [("f", "{}")]),
    (XML, "<function=f><parameter=n>True</parameter></function>", [("f", '{"n": true}')]),
    (XML, "<tool_call><function=f><parameter=n>\nmany words\n</parameter></function></tool_call>", [("f", '{"n": "many words"}')]),
    (LLAMA, '{"name": "f", "parameters": {"s": "x"}}', [("f", '{"s": "x"}')]),
    (LLAMA, ' {"type": "function", "name": "f", "parameters": {}}; {"name": "g", "parameters": {"n": 1}}', [("f", "{}"), ("g", '{"n": 1}')]),
    (LLAMA, '<|python_tag|>{"name": "f", "parameters": {}}', [("f", "{}")]),
    (LLAMA, 'Yes. <|python_tag|>{"name": "f", "parameters": {}}', ["Yes.", ("f", "{}")]),
    (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"s": "]"}, "id": "abcdefghi"}]', [("f", '{"s": "]"}')]),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"n": 1}}]', [("f", "{}"), ("g", '{"n": 1}')]),
    (MISTRAL, 'Now [TOOL_CALLS]f[ARGS]{"s": "[TOOL_CALLS]"}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}', ["Now", ("f", '{"s": "[TOOL_CALLS]"}'), ("g", "{}")]),
    (MISTRAL, '[TOOL_CALLS]f{"n": 1}', [("f", '{"n": 1}')]),
    (LISTED, '<|tool_call|>[{"name": "f", "arguments": {"n": 1}}, {"name": "g", "arguments": {}}]<|/tool_call|>', [("f", '{"n": 1}'), ("g", "{}")]),
    (LISTED, '<|tool_call|>[{"name": "f", "arguments": {"n": 1}}]', [("f", '{"n": 1}')]),
    (LISTED, 'functools[{"name": "f", "arguments": {"n": 1}}]', [("f", '{"n": 1}')]),
    (
        FUNCTION_GEMMA,
        "<start_function_call>call:f{s:<escape>a {b}, c<escape>,n:3,o:{k:[1,true,<escape>z<escape>]}}<end_function_call>",
        [("f", '{"s": "a {b}, c", "n": 3, "o": {"k": [1, true, "z"]}}')],
    ),
    (GEMMA_4, 'Ok.<|tool_call>call:f{s:<|"|>x<|"|>}<tool_call|><|tool_call>call:g{}<tool_call|>', ["Ok.", ("f", '{"s": "x"}'), ("g", "{}")]),
    (PYTHONIC, '[f(s="a, (b)", n=[1, {"k": None}]), g()]', [("f", '{"s": "a, (b)", "n": [1, {"k": null}]}'), ("g", "{}")]),
    (PYTHONIC, "<|python_start|>[f(s='it\\'s', n=-1.5)]<|python_end|>", [("f", '{"s": "it\'s", "n": -1.5}')]),
    (PLAIN, '```json\n{"name": "f", "arguments": {"n": 1}}\n```', [("f", '{"n": 1}')]),
    (PLAIN, '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', [("f", "{}"), ("g", "{}")]),
    (PLAIN, '{"name": "f", "arguments": {}}\n{"name": "g", "parameters": {}}', [("f", "{}"), ("g", "{}")]),
    (
        DEEPSEEK,
        f'{CALLS}{CALL}function{SEPARATOR}f\n```json\n{{"n": 1}}\n```{CALL_END}\n{CALL}g{SEPARATOR}{{}}{CALL_END}{CALLS_END}',
        [("f", '{"n": 1}'), ("g", "{}")],
    ),
]  # fmt: skip

NO_CALLS: list[tuple[ToolFormat, str]] = [
    (HERMES, "Plain words.  \n"),
    (HERMES, 'Look: <tool_call>\n{"nam": 3}\n</tool_call> and more <tool'),
    (HERMES, "<tool_call> call me </tool_call>"),
    (HERMES, '<tool_call>\n{"name": "f'),
    (HERMES, '<tool_call>{"name": "f", "arguments": 7}</tool_call>'),
    (HERMES, "a < b, <tool_calls> and {x}"),
    (XML, "<tool_call>\nfunction\n</tool_call>"),
    (XML, 'x <function=f {"a": 1}'),
    (LLAMA, '{"title": "f", "parameters": {"a": 1}} is JSON'),
    (LLAMA, '{"name": "unknown", "parameters": {}}'),
    (LLAMA, '  {"name": "f", "colour": "red", "parameters": {}}'),
    (LLAMA, 'As JSON: {"name": "f", "parameters": {}}'),
    (LLAMA, "{}"),
    (MISTRAL, "[TOOL_CALLS] of the wild"),
    (MISTRAL, "[TOOL_CALLS] [1, 2]"),
    (LISTED, "<|tool_call|> nothing"),
    (GEMMA_4, "<|tool_call>f{}<tool_call|>"),
    (PYTHONIC, "[1, 2] is a list"),
    (PYTHONIC, "[unknown(a=1)]"),
    (PLAIN, "```python\nprint(1)\n``` runs"),
    (PLAIN, '[{"name": "unknown", "arguments": {}}]'),
    (PLAIN, "[]"),
    (DEEPSEEK, f"{CALLS}{CALL}nothing here"),
]


def read(format_: ToolFormat, pieces: list[str]) -> list[Event]:
    """All events, those that pieces divide joined."""
    reader = Reader(lambda source: format_.read(source, TOOLS))
    events = [event for piece in pieces for event in reader.feed(piece)]
    joined: list[Event] = []
    for event in [*events, *reader.finish()]:
        last = joined[-1] if joined else None
        if isinstance(event, CallArguments) and isinstance(last, CallArguments):
            joined[-1] = CallArguments(last.text + event.text)
        elif isinstance(event, Said) and isinstance(last, Said) and last.start + len(last.text) == event.start:
            joined[-1] = Said(last.text + event.text, last.start)
        else:
            joined.append(event)
    return joined


def shown(events: list[Event]) -> list[object]:
    """Texts and calls in order."""
    parts: list[object] = []
    called = ("", "")
    for event in events:
        if isinstance(event, Said):
            parts.append(event.text)
        elif isinstance(event, CallBegun):
            called = (event.name, "")
            parts.append(called)
        elif isinstance(event, CallArguments):
            called = parts[-1] = (called[0], called[1] + event.text)  # arguments follow their call
    return parts


@pytest.mark.parametrize(("format_", "text", "expected"), CALLS_READ)
def test_calls_are_read(format_: ToolFormat, text: str, expected: list[object]) -> None:
    events = read(format_, [text])
    assert shown(events) == expected
    begun = sum(isinstance(event, CallBegun) for event in events)
    assert begun == sum(isinstance(event, CallEnded) for event in events)
    for said in (event for event in events if isinstance(event, Said)):
        assert text[said.start : said.start + len(said.text)] == said.text


@pytest.mark.parametrize(("format_", "text"), NO_CALLS)
def test_what_is_no_call_is_shown_without_loss(format_: ToolFormat, text: str) -> None:
    assert read(format_, [text]) == [Said(text, 0)]


ALL = [(format_, text) for format_, text, _ in CALLS_READ] + NO_CALLS


@given(st.data())
def test_pieces_never_matter(data: st.DataObject) -> None:
    format_, text = data.draw(st.sampled_from(ALL))
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text))))})
    assert read(format_, [text[start:end] for start, end in pairwise(cuts)]) == read(format_, [text])


@pytest.mark.parametrize(("format_", "text"), ALL)
def test_one_character_at_a_time(format_: ToolFormat, text: str) -> None:
    assert read(format_, list(text)) == read(format_, [text])


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<function=f>", "<parameter=s>", "</parameter>", "</function>", "<|python_tag|>",
    "[TOOL_CALLS]", "[ARGS]", "<|tool_call|>", "functools[", "<|tool_call>", "<tool_call|>", "call:f{", '<|"|>', CALL,
    SEPARATOR, "```json", "```", '{"name": "f"', ', "arguments": ', ', "parameters": ', '{"s": "x"}', '{"n": [1, {}]}',
    "}", "]", "[", "{", '"', "\\", "f(s=", ")", "f", "g", ":", ",", ";", "\n", "  ", "word", "é", "\U0001f600",
]  # fmt: skip


@given(
    st.sampled_from([HERMES, XML, LLAMA, MISTRAL, LISTED, FUNCTION_GEMMA, GEMMA_4, PYTHONIC, PLAIN, DEEPSEEK]),
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.lists(st.integers(0, 200)),
)
def test_any_text_is_read_the_same_however_it_is_cut(format_: ToolFormat, text: str, places: list[int]) -> None:
    cuts = sorted({0, len(text), *(min(place, len(text)) for place in places)})
    whole = read(format_, [text])
    assert read(format_, [text[start:end] for start, end in pairwise(cuts)]) == whole
    if not any(isinstance(event, CallBegun) for event in whole):
        assert "".join(event.text for event in whole if isinstance(event, Said)) == text


@pytest.mark.parametrize("format_", [HERMES, XML, MISTRAL, LISTED, GEMMA_4, DEEPSEEK])
@pytest.mark.parametrize("text", ["He said", "a < b and [c", "1 | 2"])
def test_words_are_not_held_back(format_: ToolFormat, text: str) -> None:
    reader = Reader(lambda source: format_.read(source, TOOLS))
    assert "".join(event.text for event in reader.feed(f"{text} more") if isinstance(event, Said)) == f"{text} more"


def test_arguments_stream_as_they_come() -> None:
    reader = Reader(lambda source: HERMES.read(source, TOOLS))
    assert reader.feed('<tool_call>{"name": "f", "arg') == []
    assert reader.feed('uments": {"s": "lon') == [CallBegun("f"), CallArguments('{"s": "lon')]
    assert reader.feed('g"}') == [CallArguments('g"}')]
    assert reader.feed("}") == [CallEnded()]
