"""One request field and what becomes of it. Knows no endpoint and reads no body."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ortserve.gateway.request_fields.shapes import ANYTHING, Shape


class Verdict(StrEnum):
    """What this server does with a field that a request has."""

    HONOURED = "honoured"
    REFUSED = "refused"  # a 400 that names it
    IGNORED = "ignored"  # accepted without effect, and named in the reply's header


@dataclass(frozen=True, slots=True)
class Rule:
    """A field by its path: `messages[].content[].text`. Fields below a refused or ignored one share its verdict.

    `neutral` values of a refused or ignored field ask for what happens anyway: they are accepted, and not reported.
    `unheeded` gives the paths of what has no effect in an honoured field whose parts have no rules of their own.
    """

    path: str
    verdict: Verdict
    shape: Shape = field(default_factory=dict)
    note: str = ""
    neutral: tuple[object, ...] = ()
    is_required: bool = False
    is_extension: bool = False  # not in the API's specification
    unheeded: Callable[[object], Iterable[str]] | None = None

    @property
    def key(self) -> str:
        """The path as bodies are walked: without marks of arrays."""
        return self.path.replace("[]", "")

    def below(self, prefix: str) -> Rule:
        """The same field of a nested object."""
        return replace(self, path=f"{prefix}.{self.path}")


def honoured(path: str, shape: Shape, note: str = "") -> Rule:
    """It does what the specification says."""
    return Rule(path, Verdict.HONOURED, shape, note)


def required(path: str, shape: Shape, note: str = "") -> Rule:
    """Honoured, and a 400 without it."""
    return Rule(path, Verdict.HONOURED, shape, note, is_required=True)


def extension(path: str, shape: Shape, note: str = "") -> Rule:
    """Honoured, and not in the specification."""
    return Rule(path, Verdict.HONOURED, shape, note, is_extension=True)


def refused(path: str, shape: Shape = ANYTHING, note: str = "", *, neutral: tuple[object, ...] = ()) -> Rule:
    """A 400 that names it."""
    return Rule(path, Verdict.REFUSED, shape, note, neutral)


def refused_extension(path: str, note: str) -> Rule:
    """Another server's field that would change the reply: a 400 that names it."""
    return Rule(path, Verdict.REFUSED, ANYTHING, note, is_extension=True)


def ignored(path: str, shape: Shape, note: str, *, neutral: tuple[object, ...] = ()) -> Rule:
    """Accepted without effect."""
    return Rule(path, Verdict.IGNORED, shape, note, neutral)
