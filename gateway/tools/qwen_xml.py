"""Calls as nested tags, one per parameter: Qwen3-Coder. Knows no template.

Values are raw text: the tool's schema decides which become JSON strings, streamed as they come, and which are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.tools.events import CallArguments
from ortserve.gateway.tools.format import ToolShape
from ortserve.gateway.tools.json_text import BLANKS, MAX_KEY
from ortserve.gateway.tools.prose import end_call, read_marked_calls
from ortserve.gateway.tools.source import Source, Steps, find_first, num_held

OPENER, CLOSER = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
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
