"""Calls as a name and a fenced JSON object between markers: DeepSeek R1, V3 and their kin. Knows no template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.tools.format import CallLayout, CallWords, ToolShape, UnwritableError
from ortserve.gateway.tools.json_text import BLANKS, MAX_KEY, stream_container
from ortserve.gateway.tools.prose import end_call, read_marked_calls
from ortserve.gateway.tools.source import NotACallError, Source, Steps

FENCE = "```"
BAR, BLANK = "\uff5c", "\u2581"  # full-width, and SentencePiece's
CALLS, CALLS_END, CALL, CALL_END, SEPARATOR = (
    f"<{BAR}tool{BLANK}{words}{BAR}>"
    for words in (f"calls{BLANK}begin", f"calls{BLANK}end", f"call{BLANK}begin", f"call{BLANK}end", "sep")
)


@dataclass(frozen=True, slots=True)
class DeepSeekFormat:
    """`function<sep>name`, a fence around the arguments; or, from V3.1 on, `name<sep>` and the bare arguments."""

    name: str = "deepseek"
    markers: tuple[str, ...] = (CALLS, CALLS_END, CALL, CALL_END, SEPARATOR)

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:  # noqa: ARG002  # marked: any name
        """Part of `ToolFormat`."""
        yield from read_marked_calls(source, (CALLS + CALL, CALL), _read_call)

    @property
    def layout(self) -> CallLayout:
        """Part of `ToolFormat`."""
        return CallLayout(CALLS, is_opener_repeated=False, between="\n", after=CALLS_END)

    def write_call(self, tool: ToolShape, words: CallWords, arguments: str) -> str:
        """Part of `ToolFormat`."""
        if tool.input_grammar is not None:
            raise UnwritableError(f"the input of '{tool.name}' has a grammar that cannot be written as JSON")
        head = words.text(f"{CALL}function{SEPARATOR}{tool.name}\n```json\n")
        return f"{head} {arguments} {words.text(chr(10) + FENCE + CALL_END)}"


def _read_call(source: Source, _: str) -> Steps[None]:
    name = (yield from source.before((SEPARATOR,), MAX_KEY)).strip()
    yield from source.expect(SEPARATOR)
    if name == "function":
        name = (yield from source.before(("\n", "{"), MAX_KEY)).strip()
        yield from source.skip(BLANKS)
        yield from source.accept("```json")
    if not name or (yield from source.skip(BLANKS)) != "{":
        raise NotACallError
    yield source.begin(name)
    yield from stream_container(source)
    yield from source.skip(BLANKS + "`")
    yield from end_call(source, (CALL_END,))
    yield from source.skip(BLANKS)
    yield from source.accept(CALLS_END)
