"""Calls as JSON objects in <tool_call> tags: Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4. Knows no template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.tools.format import CallLayout, CallWords, ToolShape, write_json_call
from ortserve.gateway.tools.json_call import read_call_object
from ortserve.gateway.tools.prose import end_call, read_marked_calls
from ortserve.gateway.tools.source import Source, Steps

OPENER, CLOSER = "<tool_call>", "</tool_call>"
NEWLINE = "\n"


@dataclass(frozen=True, slots=True)
class HermesFormat:
    """One object between each pair of tags. A missing brace or closing tag ends the call all the same."""

    name: str = "hermes"
    markers: tuple[str, ...] = (OPENER, CLOSER)

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:  # noqa: ARG002  # marked: any name
        """Part of `ToolFormat`."""
        yield from read_marked_calls(source, (OPENER,), _read_call)

    @property
    def layout(self) -> CallLayout:
        """Part of `ToolFormat`."""
        return CallLayout(OPENER, between="\n")

    def write_call(self, tool: ToolShape, words: CallWords, arguments: str) -> str:
        """Part of `ToolFormat`."""
        call = write_json_call(tool, words, arguments)
        return f"{words.text(NEWLINE)} {call} {words.text(NEWLINE + CLOSER)}"


def _read_call(source: Source, _: str) -> Steps[None]:
    yield from read_call_object(source)
    yield from end_call(source, (CLOSER,), also="}")
