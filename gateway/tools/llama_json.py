"""Calls as bare JSON objects: Llama 3, and any model told to answer so. Knows no template.

Nothing announces such a call, so it must open the reply, have the keys of a call and name an offered tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.tools.events import CallEnded
from ortserve.gateway.tools.format import CallLayout, CallWords, ToolShape, known_names, write_json_call
from ortserve.gateway.tools.json_call import read_call_list, read_call_object
from ortserve.gateway.tools.json_text import BLANKS
from ortserve.gateway.tools.prose import read_marked_calls, read_or_show
from ortserve.gateway.tools.source import NotACallError, Source, Steps

PYTHON_TAG = "<|python_tag|>"
FENCES = ("```json", "```")


@dataclass(frozen=True, slots=True)
class LlamaJsonFormat:
    """`{"name": ..., "parameters": {...}}`, several divided by semicolons, after <|python_tag|> or at the beginning."""

    name: str = "llama_json"
    markers: tuple[str, ...] = (PYTHON_TAG,)

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:
        """Part of `ToolFormat`."""

        def read_calls(source: Source, _: str = "") -> Steps[None]:
            while True:
                yield from read_call_object(source, known_names(tools))
                yield CallEnded()
                if (yield from source.skip(BLANKS)) not in (";", ","):
                    return
                source.mark(source.at)
                source.at += 1
                if (yield from source.skip(BLANKS)) != "{":
                    raise NotACallError

        yield from _read_first(source, read_calls(source), "{")
        yield from read_marked_calls(source, (PYTHON_TAG,), read_calls)

    @property
    def layout(self) -> CallLayout:
        """Part of `ToolFormat`."""
        return CallLayout(None, between="; ")

    def write_call(self, tool: ToolShape, words: CallWords, arguments: str) -> str:
        """Part of `ToolFormat`."""
        return write_json_call(tool, words, arguments, key="parameters")


@dataclass(frozen=True, slots=True)
class PlainFormat:
    """`{"name": ..., "arguments": {...}}` or an array of these, perhaps in a fence: for templates without tools."""

    name: str = "plain"
    markers: tuple[str, ...] = ()

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:
        """Part of `ToolFormat`."""

        def read_calls() -> Steps[None]:
            is_fenced = False
            for fence in FENCES:
                is_fenced = is_fenced or (yield from source.accept(fence))
            if (yield from source.skip(BLANKS)) not in ("[", "{"):
                raise NotACallError
            while True:
                yield from read_call_list(source, known_names(tools))
                if (yield from source.skip(BLANKS)) != "{":
                    break
                source.mark(source.at)
            if is_fenced:
                yield from source.accept(FENCES[-1])

        yield from _read_first(source, read_calls(), "{[`")
        yield from read_marked_calls(source, (), lambda *_: read_calls())

    @property
    def layout(self) -> CallLayout:
        """Part of `ToolFormat`."""
        return CallLayout(None, between="\n")

    def write_call(self, tool: ToolShape, words: CallWords, arguments: str) -> str:
        """Part of `ToolFormat`."""
        return write_json_call(tool, words, arguments)


def _read_first(source: Source, calls: Steps[None], first: str) -> Steps[None]:
    """Calls at the beginning of the reply, if it begins as they do."""
    source.mark(source.at)
    character = yield from source.skip(BLANKS)
    if character and character in first:
        yield from read_or_show(source, calls)
        return
    said = source.shown()
    if said.text:
        yield said
