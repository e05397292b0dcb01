"""Where the keys of a TOML file are, which `tomllib` does not tell. Knows no option and reads no value."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

# What a value may hold between which brackets, line breaks and equals signs mean nothing: strings and comments.
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}]|\n|[^"\'#\[\]{}\n]+|.',
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Place:
    """A key or a header: the table it is in or opens, the keys from there, and its line, counted from 1.

    `table` holds numbers where a table is one of an array's, as ("models", 0).
    """

    table: tuple[str | int, ...]
    keys: tuple[str, ...]
    line: int


def places(text: str) -> Iterator[Place]:
    """Every header and key of a file that `tomllib` has read, in order. What is inside a value counts as its key's."""
    table: tuple[str | int, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    for statement, line in _statements(text):
        if statement.startswith("[["):
            keys = _keys(statement.strip().removeprefix("[[").removesuffix("]]"))
            counts[keys] = counts.get(keys, 0) + 1
            table = (*keys, counts[keys] - 1)
            yield Place(table, (), line)
        elif statement.startswith("["):
            keys = _keys(statement.strip().removeprefix("[").removesuffix("]"))
            table = _within(keys, counts)
            yield Place(table, (), line)
        else:
            yield Place(table, _keys(_key_text(statement)), line)


def _within(keys: tuple[str, ...], counts: dict[tuple[str, ...], int]) -> tuple[str | int, ...]:
    """[models.x] belongs to the last of [[models]]."""
    path: tuple[str | int, ...] = ()
    for end in range(1, len(keys) + 1):
        path += (keys[end - 1],)
        if keys[:end] in counts:
            path += (counts[keys[:end]] - 1,)
    return path


def _statements(text: str) -> Iterator[tuple[str, int]]:
    """Headers, and keys with their values, without comments; and the line each begins on."""
    depth, line = 0, 1
    began: int | None = None
    parts: list[str] = []
    for part in _TOKEN.findall(text.replace("\r\n", "\n")):
        if part == "\n" and depth == 0:
            if began is not None:
                yield "".join(parts).strip(), began
            parts, began = [], None
        elif not part.startswith("#"):
            if began is None and not part.isspace():
                began = line
            parts.append(part)
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part, 0)
        line += part.count("\n")
    if began is not None:
        yield "".join(parts).strip(), began


def _key_text(statement: str) -> str:
    match = re.match(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|[^="'])*""", statement)
    assert match is not None
    return match[0]


def _keys(text: str) -> tuple[str, ...]:
    """The parts of a dotted key."""
    found: list[str] = []
    inner: object = tomllib.loads(f"{text} = 0")
    while isinstance(inner, dict):
        ((key, inner),) = inner.items()
        found.append(key)
    return tuple(found)
