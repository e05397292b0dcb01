"""Calls as `call:name{key:value}` between markers, strings between quotes of their own: Gemma. Knows no template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.tools.events import CallArguments
from ortserve.gateway.tools.format import ToolShape
from ortserve.gateway.tools.json_text import BLANKS, MAX_KEY, read_scalar
from ortserve.gateway.tools.prose import end_call, read_marked_calls
from ortserve.gateway.tools.source import NotACallError, Source, Steps

MAX_DEPTH = 64  # of values within values


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
