"""Anthropic's system prompt and messages as the chat messages that templates expect. Knows no template and no token.

Texts are joined as those of OpenAI's content parts are, so that one conversation is the same prompt, and the same
prefix in the cache, through either API.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ortserve.gateway.errors import bad_request
from ortserve.gateway.schema.caching import Mark
from ortserve.gateway.schema.fields import Fields, empty_array, invalid_type, invalid_value, missing
from ortserve.gateway.schema.messages import Message

ROLES = ("user", "assistant", "system")
TTLS_S = {"5m": 300.0, "1h": 3600.0}
MAX_MARKS = 4  # Anthropic's
BETWEEN_TURNS = "\n\n"  # of one role, which many templates take no two of in a row


@dataclass(frozen=True, slots=True)
class _Content:
    text: str
    marks: tuple[Mark, ...] = ()


def read_conversation(fields: Fields) -> tuple[Message, ...]:
    """`system` and `messages`, at least one of these; turns of one role in a row become one, as at Anthropic.

    `cache_control` on a block ends a reusable prefix there, at the top level at the end of the last message.
    """
    items = fields.objects("messages")
    if items is None:
        raise missing(fields.name("messages"))
    if not items:
        raise empty_array(fields.name("messages"))
    messages: list[Message] = []
    if fields.has("system"):
        system = _read_content(fields, "system")
        messages.append(Message("system", system.text, marks=system.marks))
    for item in items:
        message = _read_message(item)
        if messages and messages[-1].role == message.role:
            messages[-1] = _joined(messages[-1], message)
        else:
            messages.append(message)
    ttl_s = _read_cache_control(fields)
    if ttl_s is not None:
        last = messages[-1]
        messages[-1] = replace(last, marks=(*last.marks, Mark(len(last.content), ttl_s)))
    _check_num_marks(messages)
    return tuple(messages)


def _read_message(fields: Fields) -> Message:
    role = fields.choice("role", ROLES)
    if role is None:
        raise missing(fields.name("role"))
    if fields.get("content") is None:
        raise missing(fields.name("content"))
    content = _read_content(fields, "content")
    return Message(role, content.text, marks=content.marks)


def _joined(first: Message, second: Message) -> Message:
    offset = len(first.content) + len(BETWEEN_TURNS)
    moved = (Mark(offset + mark.num_characters, mark.ttl_s) for mark in second.marks)
    return replace(first, content=first.content + BETWEEN_TURNS + second.content, marks=(*first.marks, *moved))


def _read_content(fields: Fields, key: str) -> _Content:
    value = fields.get(key)
    if isinstance(value, str):
        return _Content(value)
    if not isinstance(value, list):
        raise invalid_type(fields.name(key), "one of a string or array of objects", value)
    texts: list[str] = []
    marks: list[Mark] = []
    num_characters = 0
    for index, item in enumerate(value):
        block = fields.element(key, index, item)
        text = _read_block(block)
        texts.append(text)
        num_characters += len(text)
        ttl_s = _read_cache_control(block)
        if ttl_s is not None:
            marks.append(Mark(num_characters, ttl_s))
    return _Content("".join(texts), tuple(marks))


def _read_block(block: Fields) -> str:
    type_ = block.required_string("type")
    if type_ != "text":
        message = (
            f"Invalid value: '{block.name('type')}' is '{type_}', but this version supports blocks of the type 'text'"
            " only."
        )
        raise bad_request(message, param=block.name("type"), code="invalid_value")
    return block.required_string("text")


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
