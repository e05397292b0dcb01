"""What of a Lark grammar takes its compiler exponential time, counted before it is asked. Knows no library.

Intersections and complements of texts: the time doubles with each, and no fuel bounds it.
"""

from __future__ import annotations

import json
import re

from ortserve.runtime.grammar.schema_work import MAX_MEETING, excessive_work

_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/')  # texts, comments, expressions
_JSON = re.compile(r"%json\b\s*")
_MEETING = re.compile(r"&\s*~?|~(?!\s*\d)")  # and no repetition, as in "a"~3


def excessive_lark(text: str) -> str | None:
    """Why it is too much work to follow a grammar; None where it is not. Schemas in it are looked at, too."""
    schemas, rest = _parted(text)
    for schema in schemas:
        reason = excessive_work(schema)
        if reason is not None:
            return reason
    num_meeting = len(_MEETING.findall(_QUOTED.sub('""', rest)))
    if num_meeting > MAX_MEETING:
        return f"it has {num_meeting} of & and ~, and at most {MAX_MEETING} are followed"
    return None


def _parted(text: str) -> tuple[list[object], str]:
    """The schemas behind `%json`, and what is left without them."""
    schemas: list[object] = []
    rest, place = "", 0
    decoder = json.JSONDecoder()
    while (found := _JSON.search(text, place)) is not None:
        rest += text[place : found.start()]
        try:
            schema, place = decoder.raw_decode(text, found.end())
        except ValueError:  # which the compiler is to say
            place = found.end()
        else:
            schemas.append(schema)
    return schemas, rest + text[place:]
