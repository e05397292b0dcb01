"""Calls as a JSON array after a marker: Phi-4-mini and Granite 3. Knows no template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.tools.format import CallLayout, CallWords, ToolShape, write_json_call
from ortserve.gateway.tools.json_call import read_call_list
from ortserve.gateway.tools.json_text import BLANKS
from ortserve.gateway.tools.prose import read_marked_calls
from ortserve.gateway.tools.source import NotACallError, Source, Steps

OPENER, CLOSER = "<|tool_call|>", "<|/tool_call|>"
PHI_WORD = "functools["  # Phi-4-mini says it instead of its marker


@dataclass(frozen=True, slots=True)
class ListedFormat:
    """`<|tool_call|>[...]`, closed or not, or `functools[...]`."""

    name: str = "listed"
    markers: tuple[str, ...] = (OPENER, CLOSER)

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:  # noqa: ARG002  # marked: any name
        """Part of `ToolFormat`."""
        yield from read_marked_calls(source, (OPENER, PHI_WORD), _read_calls)

    @property
    def layout(self) -> CallLayout:
        """Part of `ToolFormat`."""
        return CallLayout(OPENER, is_opener_repeated=False, before="[", between=", ", after="]")

    def write_call(self, tool: ToolShape, words: CallWords, arguments: str) -> str:
        """Part of `ToolFormat`."""
        return write_json_call(tool, words, arguments)


def _read_calls(source: Source, opener: str) -> Steps[None]:
    if opener == PHI_WORD:
        source.at -= 1  # the bracket opens the array
    if (yield from source.skip(BLANKS)) not in ("[", "{"):
        raise NotACallError
    yield from read_call_list(source)
    yield from source.skip(BLANKS)
    yield from source.accept(CLOSER)
