"""The text around calls: shown at once but for blanks before a call and what may become a marker. Knows no format."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ortserve.gateway.tools.events import CallEnded
from ortserve.gateway.tools.source import NotACallError, Source, Steps, find_first, num_held

Body = Callable[[Source, str], Steps[None]]


def read_marked_calls(source: Source, openers: Sequence[str], read_call: Body) -> Steps[None]:
    """A reply in which calls begin with one of `openers`, which `read_call` is given and need not read.

    Blanks before a call and between calls belong to the format. What is no call is shown, opener and blanks included.
    """
    is_after_call = False
    while True:
        opener = yield from read_prose(source, openers, is_after_call=is_after_call)
        if opener is None:
            return
        is_after_call = yield from read_or_show(source, read_call(source, opener))


def read_or_show(source: Source, call: Steps[None]) -> Steps[bool]:
    """Whether it was a call; if not, what was read of it is shown. The source has been marked."""
    try:
        yield from call
    except NotACallError:
        said = source.shown()
        if said.text:
            yield said
        return False
    source.forget()
    return True


def read_prose(source: Source, openers: Sequence[str], *, is_after_call: bool = False) -> Steps[str | None]:
    """Show text up to an opener, which is read and returned; None at the end of the reply.

    Blanks before the opener are left to the mark: they are shown when no call follows.
    """
    while True:
        if is_after_call and (yield from source.skip(" \t\r\n")):
            is_after_call = False
        rest = source.rest
        found = find_first(rest, openers)
        end = found[0] if found else len(rest) - num_held(rest, openers)
        shown = len(rest[:end].rstrip())
        if shown:
            yield source.said(shown)
        if found:
            source.mark(source.at)
            source.at += end - shown + len(found[1])
            return found[1]
        if not (yield from source.more()):
            if source.rest:
                yield source.said(len(source.rest))
            return None


def read_all_prose(source: Source) -> Steps[None]:
    """A reply, or the rest of one, without calls."""
    while (yield from source.peek()):
        yield source.said(len(source.rest))


def end_call(source: Source, closers: Sequence[str] = (), also: str = "") -> Steps[None]:
    """The end of a call that has begun: its closing marker, if it comes, and blanks and `also` before it."""
    yield CallEnded()
    if closers or also:
        yield from source.skip(f" \t\r\n{also}")
    for closer in closers:
        if (yield from source.accept(closer)):
            return
