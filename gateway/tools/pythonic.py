"""Calls as a Python list of calls: Llama 3.2 and 4, OLMo 3 and Gemma 3 where so prompted. Knows no template."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.tools.events import CallArguments, CallEnded
from ortserve.gateway.tools.format import CallLayout, CallWords, ToolShape, UnwritableError
from ortserve.gateway.tools.grammar import members, text_rule
from ortserve.gateway.tools.json_text import BLANKS, MAX_KEY
from ortserve.gateway.tools.prose import read_marked_calls, read_or_show
from ortserve.gateway.tools.source import NotACallError, Source, Steps

START, END = "<|python_start|>", "<|python_end|>"
QUOTES, OPENING, CLOSING = "\"'", "([{", ")]}"


@dataclass(frozen=True, slots=True)
class PythonicFormat:
    """`[name(key=value, ...), ...]` at the beginning of the reply, perhaps between <|python_start|> and its end."""

    name: str = "pythonic"
    markers: tuple[str, ...] = (START, END)

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:
        """Part of `ToolFormat`."""

        def read_calls(source: Source, _: str = "") -> Steps[None]:
            yield from source.skip(BLANKS)
            yield from source.expect("[")
            while True:
                yield from _read_call(source, tools)
                if (yield from source.skip(BLANKS)) != ",":
                    break
                source.mark(source.at)
                source.at += 1
            yield from source.accept("]")
            yield from source.skip(BLANKS)
            yield from source.accept(END)

        source.mark(source.at)
        if (yield from source.skip(BLANKS)) == "[":
            yield from read_or_show(source, read_calls(source))
        else:
            said = source.shown()
            if said.text:
                yield said
        yield from read_marked_calls(source, (START,), read_calls)

    @property
    def layout(self) -> CallLayout:
        """Part of `ToolFormat`."""
        return CallLayout(None, before="[", between=", ", after="]")

    def write_call(self, tool: ToolShape, words: CallWords, arguments: str) -> str:
        """Part of `ToolFormat`. Values are JSON, which is read too."""
        del arguments
        if tool.input_grammar is not None:
            raise UnwritableError(f"the input of '{tool.name}' has a grammar that cannot be written as a string")

        def write(name: str, schema: Mapping[str, object]) -> str:
            return f"{words.text(f'{name}=')} {words.rule(text_rule(schema))}"

        inner = members(tool.parameters, words.text(", "), write)
        return f"{words.text(f'{tool.name}(')} {inner} {words.text(')')}"


def _read_call(source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:
    name = (yield from source.before(("(",), MAX_KEY)).strip()
    if name not in tools:
        raise NotACallError
    source.at += 1
    yield source.begin(name)
    written = "{"
    while True:
        character = yield from source.skip(BLANKS + ",")
        if character in ("", ")"):
            break
        key = (yield from _read_until(source, "=)")).strip()
        yield from source.accept("=")
        value = yield from _read_until(source, ",)")
        yield CallArguments(f"{written}{json.dumps(key, ensure_ascii=False)}: {literal(value)}")
        written = ", "
    if (yield from source.accept(")")):
        yield CallArguments("{}" if written == "{" else "}")
    yield CallEnded()


def _read_until(source: Source, ends: str) -> Steps[str]:
    """Source text up to one of `ends` outside of quotes and brackets."""
    depth = 0
    quote = ""
    text = ""
    while character := (yield from source.peek()):
        if quote:
            if character == "\\":
                source.at += 1
                text += character
                character = yield from source.peek()
            elif character == quote:
                quote = ""
        elif depth == 0 and character in ends:
            return text
        elif character in QUOTES:
            quote = character
        elif character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
        text += character
        source.at += len(character)
    return text


def literal(text: str) -> str:
    """A Python or JSON literal as JSON, any other text as a JSON string."""
    stripped = text.strip()
    try:
        return json.dumps(json.loads(stripped), ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    try:
        return json.dumps(ast.literal_eval(stripped), ensure_ascii=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return json.dumps(stripped, ensure_ascii=False)
