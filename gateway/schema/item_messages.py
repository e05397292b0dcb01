"""Items of the Responses API as the chat messages that templates expect. Knows no template and no store.

One conversation is the same prompt, and the same prefix in the cache, through this API and through chat completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ortserve.gateway.schema.caching import Mark, read_mark
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.items import Item, text_of
from ortserve.gateway.schema.messages import Message, ToolCall, read_arguments
from ortserve.gateway.schema.response_tools import full_name


def messages_of(items: Sequence[Item]) -> tuple[Message, ...]:
    """Turns in order. Thoughts and calls belong to the assistant's turn they were part of."""
    messages: list[Message] = []
    thoughts: str | None = None
    for item in items:
        fields = Fields(item.body)
        if item.type == "reasoning":
            thoughts = text_of(fields, "content") or text_of(fields, "summary") or None
        elif item.type == "message":
            message = _message(fields)
            messages.append(replace(message, reasoning=thoughts) if message.role == "assistant" else message)
            thoughts = None
        elif item.type in ("function_call", "custom_tool_call"):
            _add_call(messages, _call(fields), thoughts)
            thoughts = None
        elif item.type in ("function_call_output", "custom_tool_call_output"):
            messages.append(Message("tool", text_of(fields, "output"), tool_call_id=fields.string("call_id")))
    return tuple(messages)


def _message(fields: Fields) -> Message:
    role = fields.required_string("role")
    num_characters = 0
    marks: list[Mark] = []
    for part in fields.objects("content") or ():
        num_characters += len(part.string("text") or part.string("refusal") or "")
        mark = read_mark(part, num_characters)
        if mark is not None:
            marks.append(mark)
    return Message("system" if role == "developer" else role, text_of(fields, "content"), marks=tuple(marks))


def _add_call(messages: list[Message], call: ToolCall, thoughts: str | None) -> None:
    last = messages[-1] if messages else None
    if last is not None and last.role == "assistant" and thoughts is None:
        messages[-1] = replace(last, tool_calls=(*last.tool_calls, call))
    else:
        messages.append(Message("assistant", "", tool_calls=(call,), reasoning=thoughts))


def _call(fields: Fields) -> ToolCall:
    id_ = fields.required_string("call_id")
    name = full_name(fields.string("namespace"), fields.required_string("name"))
    if fields.required_string("type") == "custom_tool_call":
        return ToolCall(id_, name, {"input": fields.string("input") or ""})
    return ToolCall(id_, name, read_arguments(fields, "arguments"))
