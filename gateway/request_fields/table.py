"""All rules of one kind of body, and what a body has that they do not honour. Changes nothing, refuses nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from ortserve.gateway.request_fields.rules import Rule, Verdict

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
    ignored: Rule | None = None  # the rule, if it is one that ignores
    is_open: bool = False  # fields below have rules of their own


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
        _settle(self._root)

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
        found = _Found()
        _walk(self._root, body, "", found)
        return Unheeded(tuple(found.unknown), tuple(found.ignored))


def _settle(node: _Node) -> None:
    for child in node.children.values():
        rule = child.rule
        child.ignored = rule if rule is not None and rule.verdict is Verdict.IGNORED else None
        child.is_open = bool(child.children) and (rule is None or rule.verdict is Verdict.HONOURED)
        _settle(child)


@dataclass(slots=True)
class _Found:
    """Paths in the order they come, each once."""

    unknown: dict[str, None] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)


def _walk(node: _Node, value: Mapping[str, object], path: str, found: _Found) -> None:
    """Plain calls, no generators: bodies of ten thousand messages pass here."""
    children = node.children
    for key, inner in value.items():
        child = children.get(key)
        if child is None:
            if inner is not None and inner != []:
                found.unknown[path + key] = None
            continue
        if child.is_open:
            if isinstance(inner, dict):
                _walk(child, inner, f"{path}{key}.", found)
            elif isinstance(inner, list):
                below = f"{path}{key}[]."
                for item in inner:
                    if isinstance(item, dict):
                        _walk(child, item, below, found)
        elif child.ignored is not None:
            rule = child.ignored
            if inner is not None and inner != [] and inner not in rule.neutral:
                found.ignored[rule.path] = None
        elif child.rule is not None and child.rule.unheeded is not None:
            found.ignored.update(dict.fromkeys(child.rule.unheeded(inner)))
