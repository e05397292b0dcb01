"""Calls as nested tags, one per parameter: Qwen3-Coder. Knows no template.

Values are raw text: the tool's schema decides which become JSON strings, streamed as they come, and which are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.tools.events import CallArguments
from ortserve.gateway.tools.format import CallLayout, CallWords, ToolShape, UnwritableError, raw_input
from ortserve.gateway.tools.grammar import members, text_rule, whole
from ortserve.gateway.tools.json_text import BLANKS, MAX_KEY
from ortserve.gateway.tools.prose import end_call, read_marked_calls
from ortserve.gateway.tools.source import Source, Steps, find_first, num_held

OPENER, CLOSER = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
NEWLINE = "\n"
PLAIN_KEYWORDS = frozenset(["type", "description", "title", "default", "examples", "pattern", "$defs", "definitions"])
VALUE_ENDS = ("\n</parameter>", "</parameter>", "\n<parameter=", "\n</function>")


@dataclass(frozen=True, slots=True)
class QwenXmlFormat:
    """`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`, a line each."""

    name: str = "qwen_xml"
    markers: tuple[str, ...] = (OPENER, CLOSER)

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:
        """Part of `ToolFormat`."""

        def read_call(source: Source, opener: str) -> Steps[None]:
            if opener == OPENER:
                yield from source.skip(BLANKS)
                yield from source.expect(FUNCTION)
            name = (yield from source.before((">", "\n"), MAX_KEY)).strip()
            yield from source.expect(">")
            tool = tools.get(name)
            yield source.begin(name)
            yield from _read_parameters(source, {} if tool is None else tool.parameters)
            yield from source.skip(BLANKS)
            yield from source.accept(FUNCTION_END)
            yield from end_call(source, (CLOSER,))

        yield from read_marked_calls(source, (OPENER, FUNCTION), read_call)  # some calls lack the outer tag

    @property
    def layout(self) -> CallLayout:
        """Part of `ToolFormat`."""
        return CallLayout(OPENER, between="\n")

    def write_call(self, tool: ToolShape, words: CallWords, arguments: str) -> str:
        """Part of `ToolFormat`."""

        def write(name: str, schema: Mapping[str, object]) -> str:
            value = write_value(tool, words, name, schema)
            return f"{words.text(f'{PARAMETER}{name}>{NEWLINE}')} {value} {words.text(NEWLINE)}"

        del arguments
        head = words.text(f"{NEWLINE}{FUNCTION}{tool.name}>{NEWLINE}")
        return f"{head} {members(tool.parameters, '', write)} {words.text(FUNCTION_END + NEWLINE + CLOSER)}"


def _read_parameters(source: Source, schema: Mapping[str, object]) -> Steps[None]:
    yield CallArguments("{")
    separator = ""
    while True:
        yield from source.skip(BLANKS)
        if not (yield from source.accept(PARAMETER)):
            break
        name = yield from _read_name(source)
        yield CallArguments(f"{separator}{json.dumps(name, ensure_ascii=False)}: ")
        separator = ", "
        yield from source.accept("\n")
        if is_text(schema, name):
            yield from _stream_text(source)
        else:
            yield CallArguments(value_of((yield from _read_text(source))))
        yield from source.skip(BLANKS)
        yield from source.accept(PARAMETER_END)
    yield CallArguments("}")


def _read_name(source: Source) -> Steps[str]:
    name = ""
    while (character := (yield from source.peek())) and character != ">":
        name += character
        source.at += 1
    yield from source.accept(">")
    return name.strip()


def _stream_text(source: Source) -> Steps[None]:
    """The value as a JSON string, as it comes."""
    yield CallArguments('"')
    while True:
        rest = source.rest
        found = find_first(rest, VALUE_ENDS)
        end = found[0] if found else len(rest) - num_held(rest, VALUE_ENDS)
        if end:
            yield CallArguments(json.dumps(rest[:end], ensure_ascii=False)[1:-1])
            source.at += end
        if found:
            yield CallArguments('"')
            return
        if not (yield from source.more()):
            return


def _read_text(source: Source) -> Steps[str]:
    while True:
        rest = source.rest
        found = find_first(rest, VALUE_ENDS)
        if found or not (yield from source.more()):
            end = found[0] if found else len(rest)
            source.at += end
            return rest[:end]


def is_text(schema: Mapping[str, object], name: str) -> bool:
    """Whether a parameter is a string and nothing else; parameters of unknown type are read."""
    properties = schema.get("properties")
    one = properties.get(name) if isinstance(properties, dict) else None
    return isinstance(one, dict) and one.get("type") == "string"


def value_of(text: str) -> str:
    """JSON as it stands, a word of Python's as JSON's, any other text as a JSON string."""
    stripped = text.strip()
    words = {"True": "true", "False": "false", "None": "null"}
    try:
        json.loads(words.get(stripped, stripped))
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return words.get(stripped, stripped)


def write_value(tool: ToolShape, words: CallWords, name: str, schema: Mapping[str, object]) -> str:
    """A parameter's value and its end as Lark. Raises `UnwritableError` for what raw text cannot be held to."""
    end = words.text(NEWLINE + PARAMETER_END)
    if tool.input_grammar is not None:
        return f"{raw_input(tool.input_grammar)} {end}"
    if schema.get("type") != "string":
        return f"{words.rule(text_rule(schema))} {end}"
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(options, list):
        texts = [words.text(option) for option in options if isinstance(option, str)]
        return f"({' | '.join(texts)}) {end}"
    unknown = schema.keys() - PLAIN_KEYWORDS
    if unknown:
        raise UnwritableError(
            f"'{tool.name}.{name}' has the keyword '{min(unknown)}', which raw text cannot be held to"
        )
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        return f"/{whole(pattern)}/ {end}"
    return words.rule("/(?s:.*)/", f"[suffix={json.dumps(NEWLINE + PARAMETER_END)}]")
