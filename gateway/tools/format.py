"""What every format of tool calls offers. Knows none of them."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from ortserve.gateway.tools.source import Source, Steps


@dataclass(frozen=True, slots=True)
class ToolShape:
    """What reading and constraining calls must know of a tool: its name and the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, object]


class ToolFormat(Protocol):
    """How one family of models writes calls."""

    @property
    def name(self) -> str:
        """One word, for logs and errors."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that announce or divide calls: read although they may be special tokens, which replies hide."""

    def read(self, source: Source, tools: Mapping[str, ToolShape]) -> Steps[None]:
        """The events of a reply, or of the rest of one."""


def known_names(tools: Mapping[str, ToolShape]) -> Collection[str]:
    """The tools that may be called."""
    return tools.keys()


def new_call_id() -> str:
    """A unique id as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"
