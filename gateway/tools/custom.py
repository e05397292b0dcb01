"""A custom tool's input: the one string among the arguments of its call. Knows no format of calls."""

from __future__ import annotations

from ortserve.gateway.tools.events import CallArguments
from ortserve.gateway.tools.json_text import BLANKS, stream_string
from ortserve.gateway.tools.source import NotACallError, Source, Steps

INPUT = "input"
INPUT_SCHEMA = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}


def read_input(source: Source) -> Steps[None]:
    """`{"input": "..."}` as the text of the string; any other arguments as they are."""
    source.mark(source.at)
    try:
        yield from source.expect_after(BLANKS, "{")
        yield from source.skip(BLANKS)
        yield from source.expect(f'"{INPUT}"')
        yield from source.expect_after(BLANKS, ":")
        yield from source.expect_after(BLANKS, '"')
    except NotACallError:
        yield CallArguments(source.shown().text)
        while (yield from source.peek()):
            yield CallArguments(source.rest)
            source.at = len(source.text)
        return
    source.forget()
    yield from stream_string(source, is_open=True)
    while (yield from source.peek()):
        source.at = len(source.text)
