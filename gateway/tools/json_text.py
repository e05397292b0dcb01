"""JSON inside a reply, read as it arrives: values as their own text, strings decoded. Knows no call.

Once arguments have begun to stream nothing can be taken back, so a value is followed, not validated: it ends where its
brackets are balanced, or where no JSON could go on.
"""

from __future__ import annotations

import json
import re

from ortserve.gateway.tools.events import CallArguments
from ortserve.gateway.tools.source import NotACallError, Source, Steps

BLANKS = " \t\r\n"
MAX_KEY = 256  # characters of a key or of a tool's name
OUTSIDE = re.compile(r'[{}\[\]"]|[^\s\w{}\[\]":,.+-]')
INSIDE = re.compile(r'["\\]')
SCALAR = re.compile(r"[\w.+-]*")
OPENING, CLOSING = "{[", "}]"
ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class _Balance:
    """Follows the brackets and strings of one value."""

    __slots__ = ("_depth", "_is_string", "is_ended")

    def __init__(self) -> None:
        self._depth = 0
        self._is_string = False
        self.is_ended = False

    def follow(self, text: str) -> int:
        """How many characters of `text` belong to the value; the last may have to wait for the next piece."""
        place = 0
        while not self.is_ended:
            match = (INSIDE if self._is_string else OUTSIDE).search(text, place)
            if match is None:
                return len(text)
            place = match.end()
            if match.group() == "\\":
                if place == len(text):
                    return place - 1  # it escapes what has not come
                place += 1
            else:
                place -= self._turn(match.group())
        return place

    def _turn(self, character: str) -> int:
        """Note what a character means; 1 if it is not part of the value."""
        if character == '"':
            self._is_string = not self._is_string
        elif character in OPENING:
            self._depth += 1
        elif character in CLOSING:
            self._depth -= 1
        else:
            self.is_ended = True
            return 1
        self.is_ended = self._depth == 0 and not self._is_string
        return 0


def stream_container(source: Source) -> Steps[None]:
    """Arguments as the text of the object or array that comes next."""
    balance = _Balance()
    while not balance.is_ended and (yield from source.peek()):
        length = balance.follow(source.rest)
        if length:
            yield CallArguments(source.rest[:length])
            source.at += length
        elif not balance.is_ended and not (yield from source.more()):
            return


def stream_string(source: Source, *, is_open: bool = False) -> Steps[None]:
    """Arguments as the decoded text of the string that comes next, or whose first quote has been read."""
    if not is_open:
        yield from source.accept('"')
    pending = 0  # the first half of a surrogate pair
    while character := (yield from source.peek()):
        if character == '"':
            source.at += 1
            return
        if character != "\\":
            match = INSIDE.search(source.rest)
            end = match.start() if match else len(source.rest)
            yield CallArguments(source.rest[:end])
            source.at += end
            continue
        code = yield from _read_escape(source)
        if code is None:
            return
        if pending and 0xDC00 <= code < 0xE000:
            code = 0x10000 + ((pending - 0xD800) << 10) + (code - 0xDC00)
        pending = code if 0xD800 <= code < 0xDC00 else 0
        if not pending:
            yield CallArguments("\ufffd" if 0xDC00 <= code < 0xE000 else chr(code))


def _read_escape(source: Source) -> Steps[int | None]:
    """The code unit of an escape; None when the reply ends in it."""
    while len(source.rest) < 2 or (source.rest[1] == "u" and len(source.rest) < 6):
        if not (yield from source.more()):
            source.at += len(source.rest)
            return None
    letter = source.rest[1]
    if letter != "u":
        source.at += 2
        return ord(ESCAPES.get(letter, letter))
    digits = source.rest[2:6]
    source.at += 6
    return int(digits, 16) if re.fullmatch(r"[0-9a-fA-F]{4}", digits) else 0xFFFD


def read_key(source: Source) -> Steps[str]:
    """A short string and the blanks before it. Raises `NotACallError`."""
    if (yield from source.skip(BLANKS)) != '"':
        raise NotACallError
    text = yield from collect(source, stream_string(source), limit=MAX_KEY)
    if source.text[source.at - 1 : source.at] != '"':
        raise NotACallError  # the reply has ended in it
    return text


def read_value(source: Source) -> Steps[str]:
    """Any value as its own text. Raises `NotACallError` when there is none or the reply ends in it."""
    character = yield from source.skip(BLANKS)
    if character and character in OPENING:
        text = yield from collect(source, stream_container(source))
    elif character == '"':
        start = source.position
        text = json.dumps((yield from collect(source, stream_string(source))), ensure_ascii=False)
        if source.position < start + 2:
            raise NotACallError
    else:
        text = yield from read_scalar(source)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        raise NotACallError from None
    return text


def read_scalar(source: Source) -> Steps[str]:
    """A number or a word, as its own text."""
    while True:
        match = SCALAR.match(source.text, source.at)
        assert match is not None
        if match.end() < len(source.text) or not (yield from source.more()):
            source.at = match.end()
            return match.group()


def collect(source: Source, steps: Steps[None], limit: int | None = None) -> Steps[str]:
    """What streams as arguments, joined. Raises `NotACallError` past `limit` characters."""
    parts: list[str] = []
    start = source.position
    for event in steps:
        if event is None:
            yield None
        elif isinstance(event, CallArguments):
            parts.append(event.text)
        if limit is not None and source.position - start > limit:
            raise NotACallError
    return "".join(parts)
