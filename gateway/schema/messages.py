"""Chat messages as OpenAI clients send them, in the shapes chat templates expect. Knows no template and no token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ortserve.gateway.errors import bad_request
from ortserve.gateway.schema.caching import Mark, read_mark
from ortserve.gateway.schema.fields import Fields, empty_array, invalid_type, missing
from ortserve.gateway.schema.sampling import Vocabulary

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MEDIA_PARTS = {"image_url": "image", "input_audio": "audio", "file": "file", "video_url": "video"}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call in an assistant message. `arguments` is the parsed object, or the raw text when it is not JSON."""

    id: str
    name: str
    arguments: object


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` has its text parts joined and is never None; `marks` are ends of parts in it."""

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None
    marks: tuple[Mark, ...] = ()

    def template_value(self) -> dict[str, object]:
        """The mapping a Hugging Face chat template reads; absent fields are left out."""
        value: dict[str, object] = {"role": self.role, "content": self.content}
        if self.name is not None:
            value["name"] = self.name
        if self.reasoning is not None:
            value["reasoning_content"] = self.reasoning
        if self.tool_call_id is not None:
            value["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            value["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return value


def read_messages(fields: Fields, vocabulary: Vocabulary) -> tuple[Message, ...]:
    """The conversation, `developer` mapped to `system` and `function` to `tool`. At least one message.

    A message takes a token at least: more of them than the context has are refused unread.
    """
    items = fields.array("messages", "an array of objects")
    if items is None:
        raise missing(fields.name("messages"))
    if not items:
        raise empty_array(fields.name("messages"))
    vocabulary.check_count(len(items), fields.name("messages"))
    return tuple(_read_message(fields.element("messages", index, item)) for index, item in enumerate(items))


def num_characters(messages: Sequence[Message]) -> int:
    """Characters of all contents: a lower bound of the bytes that the prompt must hold."""
    return sum(len(message.content) for message in messages)


def _read_message(fields: Fields) -> Message:
    role = fields.choice("role", ROLES)
    if role is None:
        raise missing(fields.name("role"))
    content, marks = _read_content(fields, role)
    tool_calls = _read_tool_calls(fields) if role == "assistant" else ()
    if content is None:
        if role not in ("assistant", "tool", "function"):
            raise missing(fields.name("content"))
        content = fields.string("refusal") or ""
    return Message(
        role={"developer": "system", "function": "tool"}.get(role, role),
        content=content,
        name=fields.string("name"),
        tool_calls=tool_calls,
        tool_call_id=fields.string("tool_call_id") if role == "tool" else None,
        reasoning=(fields.string("reasoning_content") or fields.string("reasoning")) if role == "assistant" else None,
        marks=marks,
    )


def _read_content(fields: Fields, role: str) -> tuple[str | None, tuple[Mark, ...]]:
    value = fields.get("content")
    if value is None or isinstance(value, str):
        return value, ()
    if not isinstance(value, list):
        raise invalid_type(fields.name("content"), "one of a string or array of objects", value)
    texts: list[str] = []
    marks: list[Mark] = []
    num_characters = 0
    for index, item in enumerate(value):
        part = fields.element("content", index, item)
        text = _read_part(part, role)
        texts.append(text)
        num_characters += len(text)
        mark = read_mark(part, num_characters)
        if mark is not None:
            marks.append(mark)
    return "".join(texts), tuple(marks)


def _read_part(part: Fields, role: str) -> str:
    type_ = part.required_string("type")
    if type_ in ("text", "input_text", "output_text"):
        return part.required_string("text")
    if type_ == "refusal" and role == "assistant":
        return part.required_string("refusal")
    supported = "'text' and 'refusal'" if role == "assistant" else "'text'"
    if type_ in MEDIA_PARTS:
        message = f"Invalid value: '{type_}'. This model does not support {MEDIA_PARTS[type_]} input."
    else:
        message = f"Invalid value: '{type_}'. Supported values are: {supported}."
    raise bad_request(message, param=part.name("type"), code="invalid_value")


def _read_tool_calls(fields: Fields) -> tuple[ToolCall, ...]:
    calls = [_read_tool_call(item) for item in fields.objects("tool_calls") or ()]
    legacy = fields.object("function_call")
    if legacy is not None and not calls:
        calls.append(ToolCall("", legacy.required_string("name"), read_arguments(legacy, "arguments")))
    return tuple(calls)


def _read_tool_call(fields: Fields) -> ToolCall:
    custom = fields.object("custom")
    if custom is not None:
        arguments = {"input": custom.string("input") or ""}
        return ToolCall(fields.string("id") or "", custom.required_string("name"), arguments)
    function = fields.object("function")
    if function is None:
        raise missing(fields.name("function"))
    return ToolCall(fields.string("id") or "", function.required_string("name"), read_arguments(function, "arguments"))


def read_arguments(fields: Fields, key: str) -> object:
    """Templates want an object; clients send JSON text, some the object itself."""
    value = fields.get(key)
    if value is None or value == "":
        return {}
    if isinstance(value, dict):
        return value
    if not isinstance(value, str):
        raise invalid_type(fields.name(key), "a string", value)
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        return value
