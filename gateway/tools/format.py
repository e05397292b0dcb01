"""What every format of tool calls offers. Knows none of them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ortserve.gateway.tools.source import Source, Steps


class UnwritableError(Exception):
    """A call that this format cannot be held to; says why."""


@dataclass(frozen=True, slots=True)
class ToolShape:
    """What reading and constraining calls must know of a tool: its name and the JSON schema of its arguments.

    `input_grammar` is the Lark of a custom tool's input, where a schema cannot say it.
    """

    name: str
    parameters: Mapping[str, object]
    input_grammar: str | None = None


@dataclass(frozen=True, slots=True)
class CallLayout:
    """The text around calls. `opener` is the marker that announces them, None when nothing does.

    `before`, `between` and `after` are written after the opener; an opener that is repeated begins every call.
    """

    opener: str | None
    is_opener_repeated: bool = True
    before: str = ""
    between: str = ""
    after: str = ""


class CallWords:
    """Texts of a format as Lark: its markers by rule, since they may be special tokens, everything else quoted."""

    def __init__(self, markers: Sequence[str]) -> None:
        self._markers = tuple(markers)
        self.rules: list[str] = []  # that the calls written so far need

    def place(self, marker: str) -> int:
        """The number of a marker's rules."""
        return self._markers.index(marker)

    def text(self, text: str) -> str:
        """Lark that matches this text."""
        for place, marker in enumerate(self._markers):
            before, found, after = text.partition(marker)
            if found:
                return " ".join(part for part in (self.text(before), f"marker_{place}", self.text(after)) if part)
        return json.dumps(text, ensure_ascii=False) if text else ""

    def rule(self, body: str, attributes: str = "") -> str:
        """The name of a new rule."""
        name = f"own_{len(self.rules)}"
        self.rules.append(f"{name}{attributes}: {body}")
        return name


class ToolFormat(Protocol):
    """How one family of models writes calls."""

    @property
    def name(self) -> str:
        """One word, for logs and errors."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that announce or divide calls: read although they may be special tokens, which replies hide."""

    @property
    def layout(self) -> CallLayout:
        """The text around calls."""

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:
        """The events of a reply, or of the rest of one."""

    def write_call(self, tool: ToolShape, words: CallWords, arguments: str) -> str:
        """One call as Lark; `arguments` names the rule of its arguments as JSON. Raises `UnwritableError`."""


def known_names(tools: Mapping[str, ToolShape]) -> Collection[str]:
    """The tools that may be called."""
    return tools.keys()


def write_json_call(tool: ToolShape, words: CallWords, arguments: str, *, key: str = "arguments") -> str:
    """A call as the JSON object that `read_call_object` reads; a custom tool's input between tags if it is no JSON."""
    if tool.input_grammar is not None:
        arguments = " ".join((words.text(RAW), raw_input(tool.input_grammar), words.text(RAW_END)))
    # As JSON's own parts: where the reply may also be other JSON, both are read by the same parts until they differ.
    head = ("{", '"name"', ": ", json.dumps(tool.name), ", ", json.dumps(key), ": ")
    return " ".join((*map(words.text, head), arguments, words.text("}")))


RAW, RAW_END = "<input>", "</input>"  # around the input of a custom tool whose grammar is no regular expression


def raw_input(grammar: str) -> str:
    """A grammar of its own inside another."""
    return f"%lark {{\n{grammar}\n}}"


def new_call_id() -> str:
    """A unique id as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"
