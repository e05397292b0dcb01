"""All rules of one kind of body, and what a body has that they do not honour. Changes nothing, refuses nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from ortserve.gateway.contract.rules import Rule, Verdict

MAX_NAMES = 32  # in one header
MAX_NAME_LENGTH = 100
NAME_CHARACTERS = "[]._-$@:/"  # besides letters and digits; everything else is percent-encoded


@dataclass(frozen=True, slots=True)
class Unheeded:
    """Paths of fields that have no effect, each once, in the order they come: unknown ones and ignored ones."""

    unknown: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def header(self) -> str:
        """Both, as the value of a header: of bounded length and in ASCII, whatever the names are."""
        names = [*self.ignored, *self.unknown]
        shown = [quote(name[:MAX_NAME_LENGTH], safe=NAME_CHARACTERS, errors="replace") for name in names[:MAX_NAMES]]
        if len(names) > MAX_NAMES:
            shown.append(f"+{len(names) - MAX_NAMES}")
        return ", ".join(shown)


@dataclass(slots=True)
class _Node:
    rule: Rule | None = None
    children: dict[str, _Node] = field(default_factory=dict)


class FieldTable:
    """The rules of one kind of body by path."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Raises `ValueError` for a field with two rules."""
        self.rules = tuple(rules)
        self._root = _Node()
        for rule in self.rules:
            node = self._root
            for part in rule.key.split("."):
                node = node.children.setdefault(part, _Node())
            if node.rule is not None:
                raise ValueError(f"{rule.path} has two rules")
            node.rule = rule

    def verdict_of(self, key: str) -> Verdict | None:
        """Of a path without marks of arrays; None when nothing has been decided about it."""
        node = self._root
        for part in key.split("."):
            rule = node.rule
            if rule is not None and (rule.verdict is not Verdict.HONOURED or not node.children):
                return rule.verdict  # what is below shares it
            child = node.children.get(part)
            if child is None:
                return None
            node = child
        return None if node.rule is None else node.rule.verdict

    def unheeded(self, body: Mapping[str, object]) -> Unheeded:
        """What a request with this body must be told. Absent, null and empty arrays are the same."""
        unknown: dict[str, None] = {}
        ignored: dict[str, None] = {}
        for path, rule in _walk(self._root, body, ""):
            if rule is None:
                unknown[path] = None
            else:
                ignored[path] = None
        return Unheeded(tuple(unknown), tuple(ignored))


def _walk(node: _Node, value: Mapping[str, object], path: str) -> Iterator[tuple[str, Rule | None]]:
    """Ignored fields with their rules, unknown ones without."""
    for key, inner in value.items():
        if inner is None or inner == []:
            continue
        child = node.children.get(key)
        if child is None:
            yield f"{path}{key}", None
        elif child.rule is not None and child.rule.verdict is Verdict.IGNORED:
            if inner not in child.rule.neutral:
                yield child.rule.path, child.rule
        elif child.children and (child.rule is None or child.rule.verdict is Verdict.HONOURED):
            yield from _walk_inner(child, inner, f"{path}{key}")


def _walk_inner(node: _Node, value: object, path: str) -> Iterator[tuple[str, Rule | None]]:
    if isinstance(value, dict):
        yield from _walk(node, value, f"{path}.")
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _walk(node, item, f"{path}[].")
