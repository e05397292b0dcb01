"""Items of the Responses API in the one form they are kept, listed and given to the model in. Knows no store, no token.

An item is its JSON body with `id`, `type` and `status` filled in, whatever shorthand a client has used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ortserve.gateway.errors import ApiError, bad_request
from ortserve.gateway.ids import new_id
from ortserve.gateway.schema.caching import read_mark
from ortserve.gateway.schema.fields import Fields, empty_array, invalid_type, invalid_value, missing

ROLES = ("user", "assistant", "system", "developer")
STATUSES = ("in_progress", "completed", "incomplete")
PHASES = ("commentary", "final_answer")
REFERENCE = "item_reference"
MAX_ID_LENGTH = 128
MAX_ITEMS = 10_000
MEDIA = {"input_image": "image", "input_audio": "audio", "input_file": "file", "image_url": "image", "file": "file"}
# Left by tools that OpenAI runs: kept and listed, never shown to the model.
HOSTED_TYPES = frozenset(
    [
        "file_search_call", "web_search_call", "computer_call", "computer_call_output", "image_generation_call",
        "code_interpreter_call", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
        "apply_patch_call", "apply_patch_call_output", "mcp_list_tools", "mcp_approval_request",
        "mcp_approval_response", "mcp_call", "tool_search_call", "tool_search_output", "compaction",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Item:
    """One element of a conversation. `body` is JSON and holds the id again."""

    id: str
    body: Mapping[str, object]

    @property
    def type(self) -> str:
        """Its kind: message, function_call and so on."""
        return str(self.body["type"])

    @property
    def is_reference(self) -> bool:
        """It only names an item that is kept."""
        return self.type == REFERENCE


def read_input(fields: Fields) -> tuple[Item, ...]:
    """`input`: a string is one user message; an array may hold references, which are not resolved here."""
    value = fields.get("input")
    if isinstance(value, str):
        return (_message("user", [_text_part("user", value)]),)
    if value is not None and not isinstance(value, list):
        raise invalid_type("input", "one of a string or array of objects", value)
    return read_items(fields, "input")


def num_messages(fields: Fields) -> int:
    """How many turns `input` has at least: those that say whose they are. Items that are read badly count as well."""
    value = fields.get("input")
    return sum(isinstance(entry, dict) and "role" in entry for entry in value) if isinstance(value, list) else 1


def read_items(fields: Fields, key: str, *, max_items: int = MAX_ITEMS) -> tuple[Item, ...]:
    """An array of items, at least one of them."""
    entries = fields.array(key, "an array of objects")
    if entries is None:
        raise missing(fields.name(key))
    if not entries:
        raise empty_array(fields.name(key))
    if len(entries) > max_items:
        message = (
            f"Invalid '{fields.name(key)}': array too long. Expected an array with maximum length {max_items}, "
            f"but got an array with length {len(entries)} instead."
        )
        raise bad_request(message, param=fields.name(key), code="array_above_max_length")
    return tuple(_read_item(fields.element(key, index, entry)) for index, entry in enumerate(entries))


def text_of(fields: Fields, key: str) -> str:
    """The joined text of a normal body's string or parts."""
    value = fields.get(key)
    if isinstance(value, str):
        return value
    return "".join(_part_text(part) for part in fields.objects(key) or ())


def _part_text(part: Fields) -> str:
    return part.string("text") or part.string("refusal") or ""


def _read_item(fields: Fields) -> Item:
    type_ = fields.string("type")
    if type_ is None:
        type_ = REFERENCE if fields.get("role") is None and fields.get("id") is not None else "message"
    if type_ in HOSTED_TYPES:
        item_id = _id(fields, "item")
        return Item(item_id, {**fields.data, "id": item_id})
    reader = READERS.get(type_)
    if reader is None:
        raise invalid_value(fields.name("type"), type_, tuple(READERS))
    return reader(fields)


def _read_message(fields: Fields) -> Item:
    role = fields.choice("role", ROLES)
    if role is None:
        raise missing(fields.name("role"))
    content = fields.get("content")
    if content is None:
        raise missing(fields.name("content"))
    if isinstance(content, str):
        parts = [_text_part(role, content)]
    elif isinstance(content, list):
        parts = [_read_part(part, role) for part in fields.objects("content") or ()]
    else:
        raise invalid_type(fields.name("content"), "one of a string or array of objects", content)
    item = _message(role, parts, _id(fields, "msg"), status=fields.choice("status", STATUSES) or "completed")
    phase = fields.choice("phase", PHASES)
    return item if phase is None else Item(item.id, {**item.body, "phase": phase})


def _message(role: str, parts: list[dict[str, object]], id_: str | None = None, *, status: str = "completed") -> Item:
    item_id = id_ or new_id("msg")
    return Item(item_id, {"id": item_id, "type": "message", "status": status, "role": role, "content": parts})


def _text_part(role: str, text: str) -> dict[str, object]:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def _read_part(part: Fields, role: str) -> dict[str, object]:
    type_ = part.required_string("type")
    if type_ in ("input_text", "output_text", "text"):
        value = _text_part(role, part.required_string("text"))
        if read_mark(part, 0) is not None:
            value["prompt_cache_breakpoint"] = part.get("prompt_cache_breakpoint")
        return value
    if type_ == "refusal" and role == "assistant":
        return {"type": "refusal", "refusal": part.required_string("refusal")}
    raise _refused_part(part, type_)


def _refused_part(part: Fields, type_: str) -> ApiError:
    if type_ in MEDIA:
        message = f"Invalid value: '{type_}'. This model does not support {MEDIA[type_]} input."
    else:
        message = f"Invalid value: '{type_}'. Supported values are: 'input_text', 'output_text' and 'refusal'."
    return bad_request(message, param=part.name("type"), code="invalid_value")


def _read_call(fields: Fields) -> Item:
    value = fields.get("arguments")
    arguments = msgspec.json.encode(value).decode() if isinstance(value, dict) else fields.string("arguments") or ""
    return _filled(fields, "fc", {**_read_called(fields), "arguments": arguments})


def _read_custom_call(fields: Fields) -> Item:
    return _filled(fields, "ctc", {**_read_called(fields), "input": fields.string("input") or ""})


def _read_called(fields: Fields) -> dict[str, object]:
    called: dict[str, object] = {"call_id": fields.required_string("call_id"), "name": fields.required_string("name")}
    namespace = fields.string("namespace")
    return called if namespace is None else {**called, "namespace": namespace}


def _read_output(fields: Fields) -> Item:
    output = fields.get("output")
    if output is None:
        raise missing(fields.name("output"))
    if isinstance(output, list):
        output = [_read_part(part, "user") for part in fields.objects("output") or ()]
    elif not isinstance(output, str):
        raise invalid_type(fields.name("output"), "one of a string or array of objects", output)
    return _filled(fields, "fco", {"call_id": fields.string("call_id"), "output": output})


def _read_reasoning(fields: Fields) -> Item:
    values: dict[str, object] = {
        "summary": _read_thoughts(fields, "summary", "summary_text"),
        "encrypted_content": fields.string("encrypted_content"),
    }
    if fields.get("content") is not None:
        values["content"] = _read_thoughts(fields, "content", "reasoning_text")
    return _filled(fields, "rs", values)


def _read_thoughts(fields: Fields, key: str, type_: str) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = []
    for part in fields.objects(key) or ():
        if part.choice("type", (type_,)) is None:
            raise missing(part.name("type"))
        parts.append({"type": type_, "text": part.required_string("text")})
    return parts


def _read_reference(fields: Fields) -> Item:
    item_id = fields.string("id", max_length=MAX_ID_LENGTH)
    if not item_id:
        raise missing(fields.name("id"))
    return Item(item_id, {"id": item_id, "type": REFERENCE})


def _filled(fields: Fields, prefix: str, values: Mapping[str, object]) -> Item:
    item_id = _id(fields, prefix)
    status = fields.choice("status", STATUSES) or "completed"
    return Item(item_id, {"id": item_id, "type": fields.get("type"), "status": status, **values})


def _id(fields: Fields, prefix: str) -> str:
    return fields.string("id", max_length=MAX_ID_LENGTH) or new_id(prefix)


READERS: Mapping[str, Callable[[Fields], Item]] = {
    "message": _read_message,
    "function_call": _read_call,
    "function_call_output": _read_output,
    "custom_tool_call": _read_custom_call,
    "custom_tool_call_output": _read_output,
    "reasoning": _read_reasoning,
    REFERENCE: _read_reference,
}


def check_no_references(items: Sequence[Item], key: str) -> None:
    """Raise a 400 where items must be whole, as those of a new conversation."""
    for index, item in enumerate(items):
        if item.is_reference:
            param = f"{key}[{index}]"
            message = f"Invalid '{param}': an item_reference cannot be added; send the item itself."
            raise bad_request(message, param=param, code="invalid_value")
