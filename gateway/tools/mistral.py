"""Calls after [TOOL_CALLS], as an array of objects or as a name and its arguments: Mistral. Knows no template."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.tools.events import CallArguments
from ortserve.gateway.tools.format import CallLayout, CallWords, ToolShape, UnwritableError, write_json_call
from ortserve.gateway.tools.json_call import read_call_list
from ortserve.gateway.tools.json_text import BLANKS, MAX_KEY, stream_container
from ortserve.gateway.tools.prose import end_call, read_marked_calls
from ortserve.gateway.tools.source import NotACallError, Source, Steps

OPENER, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


@dataclass(frozen=True, slots=True)
class MistralFormat:
    """Both spellings are read; `is_named` says which one the template writes: the older array, or name[ARGS]{...}."""

    is_named: bool = False
    name: str = "mistral"
    markers: tuple[str, ...] = (OPENER, ARGUMENTS, CALL_ID)

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:  # noqa: ARG002  # marked: any name
        """Part of `ToolFormat`."""
        yield from read_marked_calls(source, (OPENER,), _read_calls)

    @property
    def layout(self) -> CallLayout:
        """Part of `ToolFormat`."""
        if self.is_named:
            return CallLayout(OPENER)
        return CallLayout(OPENER, is_opener_repeated=False, before="[", between=", ", after="]")

    def write_call(self, tool: ToolShape, words: CallWords, arguments: str) -> str:
        """Part of `ToolFormat`."""
        if not self.is_named:
            return write_json_call(tool, words, arguments)
        if tool.input_grammar is not None:
            raise UnwritableError(f"the input of '{tool.name}' has a grammar that cannot be written as JSON")
        return f"{words.text(tool.name + ARGUMENTS)} {arguments}"


def _read_calls(source: Source, _: str) -> Steps[None]:
    if (yield from source.skip(BLANKS)) in ("[", "{"):
        yield from read_call_list(source)
        return
    name = (yield from source.before((CALL_ID, ARGUMENTS, "{"), MAX_KEY)).strip()
    if not name:
        raise NotACallError
    if (yield from source.accept(CALL_ID)):
        yield from source.before((ARGUMENTS, "{"), MAX_KEY)
    yield from source.accept(ARGUMENTS)
    if (yield from source.skip(BLANKS)) == "{":
        yield source.begin(name)
        yield from stream_container(source)
    else:
        yield source.begin(name)
        yield CallArguments("{}")
    yield from end_call(source)


def mistral_call_id() -> str:
    """Nine letters and digits: Mistral's templates refuse other ids."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
