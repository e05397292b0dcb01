"""How a model writes reasoning and calls, and with that how the replies to one request are read. Knows no engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ortserve.gateway.prompts.reasoning import ReasoningFormat, detect_reasoning
from ortserve.gateway.prompts.template import ChatTemplate
from ortserve.gateway.replies.calling import Calling
from ortserve.gateway.replies.reply import ReplyPlan
from ortserve.gateway.schema.structure import Structure
from ortserve.gateway.schema.tools import ToolUse
from ortserve.gateway.tools.detect import detect_tool_format
from ortserve.gateway.tools.format import ToolFormat, new_call_id
from ortserve.gateway.tools.llama_json import PlainFormat
from ortserve.gateway.tools.mistral import MistralFormat, mistral_call_id


@dataclass(frozen=True, slots=True)
class ReplyStyle:
    """A model's own ways, read from its template."""

    reasoning: ReasoningFormat | None
    format: ToolFormat
    is_parallel: bool = True  # several calls in one reply can be put before the template again
    new_id: Callable[[], str] = new_call_id

    def calling(self, tools: ToolUse, otherwise: Structure | None) -> Calling:
        """What the engine must see to; `otherwise` is what a reply without calls must be."""
        return Calling(tools, self.format, tools.is_parallel and self.is_parallel, otherwise)

    def plan(self, tools: ToolUse, *, is_reasoning_open: bool) -> ReplyPlan:
        """The reading of one request's replies."""
        if not tools.offered:
            return ReplyPlan(self.reasoning, is_reasoning_open)
        return ReplyPlan(
            self.reasoning,
            is_reasoning_open,
            self.format,
            {tool.name: tool.shape for tool in tools.callable_tools},
            frozenset(tool.name for tool in tools.tools if tool.is_custom),
            tools.is_parallel and self.is_parallel,
            self.new_id,
        )


def reply_style(template: ChatTemplate | None) -> ReplyStyle:
    """What the template shows; a model without one says text only."""
    if template is None:
        return ReplyStyle(None, PlainFormat())
    source = template.source
    format_ = detect_tool_format(source) if template.takes_tools else PlainFormat()
    return ReplyStyle(
        detect_reasoning(source),
        format_,
        is_parallel="only supports single tool-calls" not in source,
        new_id=mistral_call_id if isinstance(format_, MistralFormat) else new_call_id,
    )
