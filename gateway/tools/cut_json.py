"""What is whole of a JSON object that was cut. Knows no tool and no wire format."""

from __future__ import annotations

import json

CLOSERS = {"{": "}", "[": "]"}


def whole_members(text: str) -> dict[str, object]:
    """The members of an object up to where the text ends; a value that may not be whole is left out.

    The same that Anthropic's clients make of the pieces of a streamed input. Empty for a text that is no object.
    """
    end, closers = _last_whole(text)
    try:
        value = json.loads(text[:end] + closers)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _last_whole(text: str) -> tuple[int, str]:
    """How much of the text can be kept, and what closes it."""
    stack: list[str] = []  # what would close the open objects and arrays, the innermost last
    kept = (0, "")
    is_key = False  # the next string names a member
    position = 0
    while position < len(text):
        character = text[position]
        if character == '"':
            position = _string_end(text, position)
            if position < 0:
                break
            if not is_key:
                kept = position, "".join(reversed(stack))
            is_key = False
            continue
        if character == "," and stack:
            kept = position, "".join(reversed(stack))
            is_key = stack[-1] == "}"
        elif character in CLOSERS:
            stack.append(CLOSERS[character])
            is_key = character == "{"
            kept = position + 1, "".join(reversed(stack))
        elif stack and character == stack[-1]:
            stack.pop()
            is_key = False
            kept = position + 1, "".join(reversed(stack))
        position += 1
    return kept


def _string_end(text: str, begin: int) -> int:
    """The place behind the string that begins there; -1 when the text ends before."""
    position = begin + 1
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == '"':
            return position + 1
        position += 1
    return -1
