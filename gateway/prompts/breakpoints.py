"""Marked ends of content parts as token counts of the prompt. Knows no wire format, no template's rules, no cache.

Where parts end in the rendered text is found by rendering again with a character put in after each: between those both
texts are equal, whatever the template does around, so no template has to accept a conversation that is cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ortserve.gateway.prompts.tokenizer import MeasuredTokens, TextTokenizer
from ortserve.gateway.schema.messages import Message
from ortserve.plugins.api import Breakpoint

DEFAULT_TTL_S = 1800.0  # OpenAI's
MAX_BREAKPOINTS = 4  # the latest count, as at OpenAI
BEHIND, AHEAD = 64, 32  # characters around an end that are tokenized again: as far as tokens usually reach
# Private use: neither blank nor markup, so no template trims or parses them. One more than places can be.
STRANGERS = ("\ue000", "\ue001", "\ue002", "\ue003", "\ue004", "\ue005", "\ue006", "\ue007")

Render = Callable[[Sequence[Message]], str]


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
    tokens: MeasuredTokens,
    *,
    render: Render,
    tokenizer: TextTokenizer,
    ttl_s: float | None,
) -> tuple[Breakpoint, ...]:
    """A breakpoint per place, ascending. `text` is the rendered conversation, `tokens` its tokens.

    A count is that of the tokens which end with the part or before, less those that would be others if another text
    followed: what lies before a breakpoint has the same ids in every conversation that shares it. A part that the
    template does not show has none.
    """
    lifetimes: dict[int, float] = {}
    for place, end in _ends_in_text(messages, places, text, render).items():
        count = tokens.num_before(_settled(text, end, tokenizer))
        if count:
            lifetime = place.ttl_s or ttl_s or DEFAULT_TTL_S
            lifetimes[count] = max(lifetime, lifetimes.get(count, 0.0))
    return tuple(Breakpoint(count, lifetimes[count]) for count in sorted(lifetimes))


def _settled(text: str, end: int, tokenizer: TextTokenizer) -> int:
    """How much of `text` before `end` is tokenized alike whether the text goes on or not.

    Tokenizers merge across ends and look ahead at blanks, a few characters far: tokenizing the surroundings twice shows
    it, where tokenizing everything before the end again would cost as much as the prompt itself.
    """
    start = max(0, end - BEHIND)
    alone = tokenizer.encode(text[start:end], add_special_tokens=False)
    followed = tokenizer.encode(text[start : end + AHEAD], add_special_tokens=False)
    shared = common_length(alone, followed)
    if shared == len(alone):
        return end
    return start + tokenizer.encode_measured(text[start:end]).end_of(shared - 1) if shared else start


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


def _ends_in_text(messages: Sequence[Message], places: Sequence[Place], text: str, render: Render) -> dict[Place, int]:
    """Where the places are in `text`, those that it shows."""
    found = _aligned(text, *_with_strangers(messages, places, render))
    if found is not None:
        return found
    # The template does more than show the contents in order, so each is looked for alone.
    ends: dict[Place, int] = {}
    for place in places:
        other, _ = _with_strangers(messages, [place], render)
        if other != text:
            ends[place] = common_length(text, other)
    return ends


def _with_strangers(
    messages: Sequence[Message], places: Sequence[Place], render: Render
) -> tuple[str, dict[str, Place]]:
    """The conversation rendered with a character put in at each place, and which one is whose."""
    changed = list(messages)
    owners: dict[str, Place] = {}
    for place in reversed(places):  # from behind, so that the places before stay where they are
        message = changed[place.message]
        before, after = message.content[: place.num_characters], message.content[place.num_characters :]
        stranger = next(one for one in STRANGERS if one not in owners and not after.startswith(one))
        owners[stranger] = place
        changed[place.message] = replace(message, content=before + stranger + after)
    return render(changed), owners


def _aligned(text: str, other: str, owners: dict[str, Place]) -> dict[Place, int] | None:
    """The places when `other` is `text` but for the strangers and blanks kept before them; None when it is not."""
    ends: dict[Place, int] = {}
    at = other_at = 0
    while True:
        shared = _shared(text, at, other, other_at, owners)
        at, other_at = at + shared, other_at + shared
        if other_at == len(other):
            return ends if at == len(text) else None
        stranger_at = other_at
        while stranger_at < len(other) and other[stranger_at].isspace():
            stranger_at += 1  # trimmed in `text`, where they come last
        place = owners.get(other[stranger_at : stranger_at + 1])
        if place is None or place in ends:
            return None
        ends[place] = at
        other_at = stranger_at + 1


def _shared(text: str, at: int, other: str, other_at: int, owners: dict[str, Place]) -> int:
    """The common length from there on; nearly always up to the next stranger, which one comparison shows."""
    nearest = min((found for one in owners if (found := other.find(one, other_at)) >= 0), default=len(other))
    length = nearest - other_at
    is_end = text[at + length : at + length + 1] != other[nearest : nearest + 1]
    if is_end and text.startswith(other[other_at:nearest], at):
        return length
    return common_length(text[at:], other[other_at:])
