"""Calls as `call:name{key:value}` between markers, strings between quotes of their own: Gemma. Knows no template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.tools.events import CallArguments
from ortserve.gateway.tools.format import CallLayout, CallWords, ToolShape, UnwritableError, raw_input
from ortserve.gateway.tools.grammar import members, text_rule, whole
from ortserve.gateway.tools.json_text import BLANKS, MAX_KEY, read_scalar
from ortserve.gateway.tools.prose import end_call, read_marked_calls
from ortserve.gateway.tools.source import NotACallError, Source, Steps

MAX_DEPTH = 64  # of values within values
PLAIN_KEYWORDS = frozenset(
    [
        "type", "description", "title", "default", "examples", "pattern", "properties", "required",
        "additionalProperties", "items",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GemmaFormat:
    """The two spellings differ in their markers only: FunctionGemma's and Gemma 4's."""

    opener: str
    closer: str
    quote: str
    name: str = "gemma"

    @property
    def markers(self) -> tuple[str, ...]:
        """Part of `ToolFormat`."""
        return self.opener, self.closer, self.quote

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:  # noqa: ARG002  # marked: any name
        """Part of `ToolFormat`."""
        yield from read_marked_calls(source, (self.opener,), self._read_call)

    @property
    def layout(self) -> CallLayout:
        """Part of `ToolFormat`."""
        return CallLayout(self.opener)

    def write_call(self, tool: ToolShape, words: CallWords, arguments: str) -> str:
        """Part of `ToolFormat`."""
        del arguments
        inner = self._write_object(tool, words, tool.parameters, 0)
        return f"{words.text(f'call:{tool.name}')} {inner} {words.text(self.closer)}"

    def _write_object(self, tool: ToolShape, words: CallWords, schema: Mapping[str, object], depth: int) -> str:
        def write(name: str, inner: Mapping[str, object]) -> str:
            if tool.input_grammar is not None:
                quote = words.text(self.quote)
                return f"{words.text(f'{name}:')} {quote} {raw_input(tool.input_grammar)} {quote}"
            return f"{words.text(f'{name}:')} {self._write_value(tool, words, inner, depth + 1)}"

        return f"{words.text('{')} {members(schema, words.text(','), write)} {words.text('}')}"

    def _write_value(self, tool: ToolShape, words: CallWords, schema: Mapping[str, object], depth: int) -> str:
        quote = words.text(self.quote)
        type_ = schema.get("type")
        options = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(options, list):
            texts = [
                f"{quote} {words.text(one)} {quote}" if isinstance(one, str) else words.text(_dumped(one))
                for one in options
            ]
            return f"({' | '.join(texts)})"
        if type_ in ("integer", "number", "boolean", "null"):
            return words.rule(text_rule(schema))
        unknown = schema.keys() - PLAIN_KEYWORDS
        if unknown or depth > MAX_DEPTH:
            keyword = min(unknown, default="type")
            raise UnwritableError(f"'{tool.name}' has the keyword '{keyword}', which this format cannot be held to")
        if type_ == "string":
            pattern = schema.get("pattern")
            inner = f"/{whole(pattern)}/ {quote}" if isinstance(pattern, str) else self._rest_of_text(words)
            return f"{quote} {inner}"
        if type_ == "array" and isinstance(items := schema.get("items"), dict):
            one = self._write_value(tool, words, items, depth + 1)
            return f"{words.text('[')} ({one} ({words.text(',')} {one})*)? {words.text(']')}"
        if type_ == "object":
            return self._write_object(tool, words, schema, depth)
        raise UnwritableError(f"'{tool.name}' has a parameter of no single type, which this format cannot be held to")

    def _rest_of_text(self, words: CallWords) -> str:
        return f"until_marker_{words.place(self.quote)}"

    def _read_call(self, source: Source, _: str) -> Steps[None]:
        yield from source.skip(BLANKS)
        yield from source.expect("call:")
        name = (yield from source.before(("{",), MAX_KEY)).strip()
        if not name:
            raise NotACallError
        yield source.begin(name)
        try:
            yield from self._stream_arguments(source)
        except NotACallError:
            yield CallArguments("}")
        yield from end_call(source, (self.closer,), also="}")

    def _stream_arguments(self, source: Source) -> Steps[None]:
        source.at += 1
        yield CallArguments("{")
        separator = ""
        while (yield from source.skip(BLANKS + ",")) not in ("", "}"):
            key = yield from self._read_key(source)
            value = yield from self._read_value(source, 0)
            yield CallArguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: {_dumped(value)}")
            separator = ", "
        if (yield from source.accept("}")):
            yield CallArguments("}")

    def _read_key(self, source: Source) -> Steps[str]:
        if (yield from source.accept(self.quote)):
            key = yield from source.before((self.quote,))
            yield from source.accept(self.quote)
            yield from source.skip(BLANKS)
        else:
            key = (yield from source.before((":",))).strip().strip('"')
        yield from source.expect(":")
        return key

    def _read_value(self, source: Source, depth: int) -> Steps[object]:
        if depth > MAX_DEPTH:
            raise NotACallError
        character = yield from source.skip(BLANKS)
        if (yield from source.accept(self.quote)):
            text = yield from source.before((self.quote,))
            yield from source.accept(self.quote)
            return text
        if character == "{":
            return (yield from self._read_object(source, depth))
        if character == "[":
            return (yield from self._read_array(source, depth))
        if character == '"':
            source.at += 1
            text = yield from source.before(('"',))
            source.at += 1
            return text
        word = yield from read_scalar(source)
        if not word:
            raise NotACallError
        try:
            value: object = json.loads(word)
        except ValueError:
            return word
        return value

    def _read_object(self, source: Source, depth: int) -> Steps[object]:
        source.at += 1
        members: dict[str, object] = {}
        while (character := (yield from source.skip(BLANKS + ","))) != "}":
            if not character:
                raise NotACallError
            key = yield from self._read_key(source)
            members[key] = yield from self._read_value(source, depth + 1)
        source.at += 1
        return members

    def _read_array(self, source: Source, depth: int) -> Steps[object]:
        source.at += 1
        items: list[object] = []
        while (character := (yield from source.skip(BLANKS + ","))) != "]":
            if not character:
                raise NotACallError
            items.append((yield from self._read_value(source, depth + 1)))
        source.at += 1
        return items


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


FUNCTION_GEMMA = GemmaFormat("<start_function_call>", "<end_function_call>", "<escape>")
GEMMA_4 = GemmaFormat("<|tool_call>", "<tool_call|>", '<|"|>')
