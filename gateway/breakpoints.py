"""Marked ends of content parts as token counts of the prompt. Knows no wire format, no template's rules and no cache.

Where a part ends in the rendered text is found by rendering again with one character put in after it: up to there both
texts are equal, whatever the template does around, so no template has to accept a conversation that is cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ortserve.gateway.schema.messages import Message
from ortserve.plugins.api import Breakpoint

DEFAULT_TTL_S = 1800.0  # OpenAI's
MAX_BREAKPOINTS = 4  # the latest count, as at OpenAI
STRANGERS = ("\ue000", "\ue001")  # private use: neither blank nor markup, so no template trims or parses them

Render = Callable[[Sequence[Message]], str]
Encode = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """The end of a marked part: after so many characters of one message."""

    message: int
    num_characters: int
    ttl_s: float | None


def marked_places(messages: Sequence[Message]) -> tuple[Place, ...]:
    """The latest marked parts, in order."""
    places = [
        Place(index, mark.num_characters, mark.ttl_s)
        for index, message in enumerate(messages)
        for mark in message.marks
    ]
    return tuple(places[-MAX_BREAKPOINTS:])


def find_breakpoints(
    messages: Sequence[Message],
    places: Sequence[Place],
    text: str,
    ids: tuple[int, ...],
    *,
    render: Render,
    encode: Encode,
    ttl_s: float | None,
) -> tuple[Breakpoint, ...]:
    """A breakpoint per place, ascending. `text` is the rendered conversation, `ids` its tokens.

    A part may end inside a token of the whole text, since tokenizers merge across ends: then the breakpoint lies after
    the last token that the text up to the part's end also begins with. A part the template does not show has none.
    """
    lifetimes: dict[int, float] = {}
    for place in places:
        end = _end_in_text(messages, place, text, render)
        count = 0 if end is None else common_length(encode(text[:end]), ids)
        if count:
            lifetime = place.ttl_s or ttl_s or DEFAULT_TTL_S
            lifetimes[count] = max(lifetime, lifetimes.get(count, 0.0))
    return tuple(Breakpoint(count, lifetimes[count]) for count in sorted(lifetimes))


def common_length(first: str | tuple[int, ...], second: str | tuple[int, ...]) -> int:
    """The length of the longest common prefix, by halving: comparing slices is as fast as memory."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _end_in_text(messages: Sequence[Message], place: Place, text: str, render: Render) -> int | None:
    message = messages[place.message]
    before, after = message.content[: place.num_characters], message.content[place.num_characters :]
    stranger = STRANGERS[after.startswith(STRANGERS[0])]
    changed = list(messages)
    changed[place.message] = replace(message, content=before + stranger + after)
    other = render(changed)
    return None if other == text else common_length(text, other)
