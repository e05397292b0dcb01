"""How a conversation and its tools are put before a chat template, by what its text reads. Knows no request.

Most templates take tools as transformers gives them. Some read them from the system message, some want ids or arguments
of their own shape, and some know no tools: there the system message explains them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

Values = Sequence[Mapping[str, object]]

SHORT_ID = 9  # letters and digits, in Mistral's templates
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
INSTRUCTIONS = (
    "You may call these functions:\n{tools}\n\n"
    'To call one, answer with nothing but JSON: {{"name": <name>, "arguments": <object>}}. '
    "To call several, answer with an array of these. Answer in words when no function is needed."
)


def with_tools_in_system(messages: Values, tools: Values) -> list[Mapping[str, object]]:
    """The tools as the system message's own field, in JSON: Phi-4-mini's template writes them from there."""
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "tools": functions}, *messages[1:]]
    return [{"role": "system", "content": "", "tools": functions}, *messages]


def with_instructions(messages: Values, tools: Values) -> list[Mapping[str, object]]:
    """For templates without tools: the tools explained in the system message, earlier calls and results as texts."""
    spoken = _in_words(messages)
    if not tools:
        return spoken
    text = INSTRUCTIONS.format(tools="\n".join(_dumped(tool["function"]) for tool in tools))
    if spoken and spoken[0]["role"] == "system":
        return [{**spoken[0], "content": f"{spoken[0]['content']}\n\n{text}"}, *spoken[1:]]
    return [{"role": "system", "content": text}, *spoken]


def with_calls_as_text(messages: Values, *, in_tags: bool) -> list[Mapping[str, object]]:
    """For templates that show results and lose the calls before them (Phi, Granite, SmolLM3): calls as they were said.

    `in_tags`: each between <tool_call> tags, otherwise all in an array.
    """
    changed: list[Mapping[str, object]] = []
    for message in messages:
        calls = message.get("tool_calls")
        if isinstance(calls, list) and calls:
            text = f"<|tool_call|>{_dumped([_spoken(call) for call in calls])}"
            if in_tags:
                text = "\n".join(f"<tool_call>\n{_dumped(_spoken(call))}\n</tool_call>" for call in calls)
            changed.append({"role": "assistant", "content": f"{message['content']}{text}"})
        else:
            changed.append(message)
    return changed


def with_short_ids(messages: Values) -> list[Mapping[str, object]]:
    """Ids of calls as nine letters and digits, equal where they were equal."""
    changed: list[Mapping[str, object]] = []
    for message in messages:
        value = dict(message)
        calls = value.get("tool_calls")
        if isinstance(calls, list):
            value["tool_calls"] = [{**call, "id": short_id(str(call["id"]))} for call in calls]
        if "tool_call_id" in value:
            value["tool_call_id"] = short_id(str(value["tool_call_id"]))
        changed.append(value)
    return changed


def with_arguments_as_text(messages: Values) -> list[Mapping[str, object]]:
    """Arguments of calls as JSON text: some templates join them to strings."""
    changed: list[Mapping[str, object]] = []
    for message in messages:
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            changed.append({**message, "tool_calls": [_with_text_arguments(call) for call in calls]})
        else:
            changed.append(message)
    return changed


def short_id(id_: str) -> str:
    """The id itself when it has the shape, else nine characters that depend on it alone."""
    if len(id_) == SHORT_ID and id_.isascii() and id_.isalnum():
        return id_
    number = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8])
    text = ""
    for _ in range(SHORT_ID):
        number, place = divmod(number, len(ALPHABET))
        text += ALPHABET[place]
    return text


def _with_text_arguments(call: Mapping[str, object]) -> Mapping[str, object]:
    function = call["function"]
    assert isinstance(function, dict)
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _in_words(messages: Values) -> list[Mapping[str, object]]:
    """Results become the user's turns, those of one turn of calls together: such templates want turns to alternate."""
    spoken: list[Mapping[str, object]] = []
    was_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result:
            text = f"Result of the call:\n{message['content']}"
            if was_result:
                spoken[-1] = {**spoken[-1], "content": f"{spoken[-1]['content']}\n\n{text}"}
            else:
                spoken.append({"role": "user", "content": text})
        else:
            spoken.append(_call_in_words(message))
        was_result = is_result
    return spoken


def _call_in_words(message: Mapping[str, object]) -> Mapping[str, object]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    written = [_dumped(_spoken(call)) for call in calls]
    shown = [str(message["content"])] if message["content"] else []
    return {"role": "assistant", "content": "\n".join([*shown, *written])}


def _spoken(call: Mapping[str, object]) -> Mapping[str, object]:
    function = call["function"]
    assert isinstance(function, dict)
    return {"name": function["name"], "arguments": function["arguments"]}


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
