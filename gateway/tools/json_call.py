"""A call as one JSON object, keys in any order: the arguments stream as soon as the name is known. Knows no marker."""

from __future__ import annotations

import json
from collections.abc import Collection

from ortserve.gateway.tools.custom import INPUT
from ortserve.gateway.tools.events import CallArguments, CallEnded
from ortserve.gateway.tools.format import RAW, RAW_END
from ortserve.gateway.tools.json_text import (
    BLANKS,
    read_key,
    read_scalar,
    read_value,
    stream_container,
    stream_string,
)
from ortserve.gateway.tools.source import NotACallError, Source, Steps, num_held

NAME_KEYS = frozenset(["name", "function", "tool"])
ARGUMENT_KEYS = frozenset(["arguments", "parameters"])
OTHER_KEYS = frozenset(["type", "id", "call_id", "index"])


def read_call_object(source: Source, names: Collection[str] | None = None) -> Steps[None]:
    """One call without its end (`CallEnded`). Raises `NotACallError` for any other text.

    With `names` only these are calls, and only with the keys that calls have: what no marker announces may as well be
    JSON for the reader.
    """
    call = _Call(source, names)
    yield from source.expect_after(BLANKS, "{")
    if (yield from source.skip(BLANKS)) == "}":
        raise NotACallError
    while True:
        yield from call.read_member()
        character = yield from source.skip(BLANKS)
        if character == ",":
            source.at += 1
            continue
        if character == "}":
            source.at += 1
        elif not call.has_begun:
            raise NotACallError
        break
    yield from call.read_end()


def read_call_list(source: Source, names: Collection[str] | None = None) -> Steps[None]:
    """An array of calls, each with its end, or one without the array."""
    if not (yield from source.accept("[")):
        yield from read_call_object(source, names)
        yield CallEnded()
        return
    while True:
        yield from read_call_object(source, names)
        yield CallEnded()
        if (yield from source.skip(BLANKS)) != ",":
            break
        source.mark(source.at)
        source.at += 1
    yield from source.accept("]")


class _Call:
    """The members of one object that have been read."""

    __slots__ = ("_arguments", "_name", "_names", "_source", "has_begun")

    def __init__(self, source: Source, names: Collection[str] | None) -> None:
        self._source = source
        self._names = names
        self._name: str | None = None
        self._arguments: str | None = None  # came before the name
        self.has_begun = False

    def read_member(self) -> Steps[None]:
        """A key and its value."""
        source = self._source
        try:
            key = yield from read_key(source)
            yield from source.expect_after(BLANKS, ":")
            yield from self._read_value(key)
        except NotACallError:
            if not self.has_begun:
                raise

    def read_end(self) -> Steps[None]:
        """What the name and arguments of a complete object are still owed."""
        if self.has_begun:
            return
        if self._name is None:
            raise NotACallError
        yield self._source.begin(self._name)
        yield CallArguments(self._arguments or "{}")

    def _read_value(self, key: str) -> Steps[None]:
        source = self._source
        character = yield from source.skip(BLANKS)
        if self.has_begun:
            yield from read_value(source)
        elif key in NAME_KEYS and self._name is None and character == '"':
            self._name = yield from read_key(source)
            if not self._name or (self._names is not None and self._name not in self._names):
                raise NotACallError
        elif key == "function" and character == "{":
            yield from read_call_object(source, self._names)  # as OpenAI's own objects nest it
            self.has_begun = True
        elif key in ARGUMENT_KEYS and self._name is not None:
            yield from self._stream_arguments(character)
        elif key in ARGUMENT_KEYS:
            self._arguments = yield from read_value(source)
            if self._arguments[0] not in "{n":
                raise NotACallError
            self._arguments = self._arguments.replace("null", "{}", 1) if self._arguments[0] == "n" else self._arguments
        elif self._names is not None and key not in OTHER_KEYS:
            raise NotACallError
        else:
            yield from read_value(source)

    def _stream_arguments(self, first: str) -> Steps[None]:
        source, name = self._source, self._name
        assert name is not None
        if first == "{":
            yield source.begin(name)
            self.has_begun = True
            yield from stream_container(source)
        elif first == '"':  # the object written as a string
            yield source.begin(name)
            self.has_begun = True
            yield from stream_string(source)
        elif first == "<":
            yield from source.expect(RAW)
            yield source.begin(name)
            self.has_begun = True
            yield from _stream_raw(source)
        else:
            if (yield from read_scalar(source)) != "null":
                raise NotACallError
            yield source.begin(name)
            self.has_begun = True
            yield CallArguments("{}")


def _stream_raw(source: Source) -> Steps[None]:
    """A custom tool's input between its tags, as the arguments it amounts to."""
    yield CallArguments(f'{{"{INPUT}": "')
    while True:
        rest = source.rest
        end = rest.find(RAW_END)
        length = end if end >= 0 else len(rest) - num_held(rest, (RAW_END,))
        if length:
            yield CallArguments(json.dumps(rest[:length], ensure_ascii=False)[1:-1])
            source.at += length
        if end >= 0:
            source.at += len(RAW_END)
            yield CallArguments('"}')
            return
        if not (yield from source.more()):
            return
