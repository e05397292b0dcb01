"""Anthropic's system prompt and messages as the chat messages that templates expect. Knows no template and no token.

Texts are joined as those of OpenAI's content parts are, so that one conversation is the same prompt, and the same
prefix in the cache, through either API.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from operator import attrgetter

from ortserve.gateway.errors import bad_request
from ortserve.gateway.schema.caching import Mark
from ortserve.gateway.schema.fields import Fields, empty_array, invalid_type, invalid_value, missing
from ortserve.gateway.schema.messages import Message, ToolCall
from ortserve.gateway.schema.sampling import Vocabulary

ROLES = ("user", "assistant", "system")
TTLS_S = {"5m": 300.0, "1h": 3600.0}
MAX_MARKS = 4  # Anthropic's
BLOCKS = {  # by the place they stand in
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
    "result": ("text",),
}
ERROR = "Error: "
BETWEEN_TURNS = "\n\n"  # of one role, which many templates take no two of in a row


@dataclass(frozen=True, slots=True)
class _Content:
    """The blocks of one turn: texts joined, and what is no text."""

    text: str
    marks: tuple[Mark, ...] = ()
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    results: tuple[Message, ...] = ()
    has_text: bool = True


def read_conversation(fields: Fields, vocabulary: Vocabulary) -> tuple[Message, ...]:
    """`system` and `messages`, at least one of these; turns of one role in a row become one, as at Anthropic.

    `cache_control` on a block ends a reusable prefix there, at the top level at the end of the last message. A turn
    takes a token at least: more of them than the context has are refused unread.
    """
    items = fields.array("messages", "an array of objects")
    if items is None:
        raise missing(fields.name("messages"))
    if not items:
        raise empty_array(fields.name("messages"))
    vocabulary.check_count(_num_turns(items), fields.name("messages"))
    messages: list[Message] = []
    single = (message for index, item in enumerate(items) for message in _read_item(fields, index, item))
    for role, run in groupby(chain(_read_system(fields), single), attrgetter("role")):
        turns = list(run)
        messages += turns if role == "tool" else [_joined(turns)]
    ttl_s = _read_cache_control(fields)
    if ttl_s is not None:
        last = messages[-1]
        messages[-1] = replace(last, marks=(*last.marks, Mark(len(last.content), ttl_s)))
    _check_num_marks(messages)
    return tuple(messages)


def _read_system(fields: Fields) -> Iterator[Message]:
    if fields.has("system"):
        system = _read_content(fields, "system", "system")
        yield Message("system", system.text, marks=system.marks)


def _num_turns(items: Sequence[object]) -> int:
    """At least as many are left when those of one role have been joined."""
    return sum(1 for _ in groupby(item.get("role") if isinstance(item, dict) else None for item in items))


def _read_item(fields: Fields, index: int, item: object) -> tuple[Message, ...]:
    if isinstance(item, dict):
        role, text = item.get("role"), item.get("content")
        if isinstance(text, str) and role in ROLES:  # as most are, and there may be thousands
            return (Message(role, text),)
    return _read_message(fields.element("messages", index, item))


def _read_message(fields: Fields) -> tuple[Message, ...]:
    """A turn; results of calls, which Anthropic has in the user's, become messages of their own before it."""
    role = fields.choice("role", ROLES)
    if role is None:
        raise missing(fields.name("role"))
    if fields.get("content") is None:
        raise missing(fields.name("content"))
    content = _read_content(fields, "content", role)
    if content.results and not content.has_text:
        return content.results
    message = Message(role, content.text, tool_calls=content.calls, reasoning=content.reasoning, marks=content.marks)
    return (*content.results, message)


def _joined(messages: Sequence[Message]) -> Message:
    """Turns of one role as one."""
    first = messages[0]
    if len(messages) == 1:
        return first
    texts: list[str] = []
    marks: list[Mark] = []
    length = 0
    for message in messages:
        if length and message.content:
            texts.append(BETWEEN_TURNS)
            length += len(BETWEEN_TURNS)
        marks += (Mark(length + mark.num_characters, mark.ttl_s) for mark in message.marks)
        texts.append(message.content)
        length += len(message.content)
    return replace(
        first,
        content="".join(texts),
        tool_calls=tuple(call for message in messages for call in message.tool_calls),
        reasoning=next((message.reasoning for message in messages if message.reasoning), None),
        marks=tuple(marks),
    )


def _read_content(fields: Fields, key: str, role: str) -> _Content:
    value = fields.get(key)
    if isinstance(value, str):
        return _Content(value)
    if not isinstance(value, list):
        raise invalid_type(fields.name(key), "one of a string or array of objects", value)
    texts: list[str] = []
    marks: list[Mark] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    num_characters = 0
    for index, item in enumerate(value):
        block = fields.element(key, index, item)
        type_ = _read_type(block, role)
        if type_ == "tool_result":
            results.append(_read_result(block))
            continue
        if type_ == "text":
            texts.append(block.required_string("text"))
            num_characters += len(texts[-1])
        elif type_ == "thinking":
            thoughts.append(block.required_string("thinking"))
        elif type_ == "tool_use":
            calls.append(_read_call(block))
        ttl_s = _read_cache_control(block)
        if ttl_s is not None:
            marks.append(Mark(num_characters, ttl_s))
    reasoning = "\n".join(thoughts) or None
    return _Content("".join(texts), tuple(marks), reasoning, tuple(calls), tuple(results), bool(texts))


def _read_type(block: Fields, role: str) -> str:
    type_ = block.required_string("type")
    if type_ not in BLOCKS[role]:
        supported = " and ".join(f"'{name}'" for name in BLOCKS[role])
        message = (
            f"Invalid value: '{block.name('type')}' is '{type_}', but in this place this version supports blocks of the"
            f" type {supported} only."
        )
        raise bad_request(message, param=block.name("type"), code="invalid_value")
    return type_


def _read_call(block: Fields) -> ToolCall:
    arguments = block.object("input")
    return ToolCall(
        block.required_string("id"), block.required_string("name"), {} if arguments is None else dict(arguments.data)
    )


def _read_result(block: Fields) -> Message:
    content = _Content("") if block.get("content") is None else _read_content(block, "content", "result")
    text, shift = content.text, 0
    if block.boolean("is_error"):
        text, shift = f"{ERROR}{text}", len(ERROR)  # templates have no other place for it
    marks = [Mark(mark.num_characters + shift, mark.ttl_s) for mark in content.marks]
    ttl_s = _read_cache_control(block)
    if ttl_s is not None:
        marks.append(Mark(len(text), ttl_s))
    return Message("tool", text, tool_call_id=block.required_string("tool_use_id"), marks=tuple(marks))


def _read_cache_control(fields: Fields) -> float | None:
    """The seconds that the prefix before it is kept; None without `cache_control`."""
    control = fields.object("cache_control")
    if control is None:
        return None
    if control.required_string("type") != "ephemeral":
        raise invalid_value(control.name("type"), control.get("type"), ("ephemeral",))
    return TTLS_S[control.choice("ttl", tuple(TTLS_S)) or "5m"]


def _check_num_marks(messages: Sequence[Message]) -> None:
    num_marks = sum(len(message.marks) for message in messages)
    if num_marks > MAX_MARKS:
        message = f"Invalid 'cache_control': at most {MAX_MARKS} blocks may have it, but {num_marks} do."
        raise bad_request(message, param="cache_control", code="invalid_value")
