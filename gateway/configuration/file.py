"""A configuration file: its tables, the line of each key, and what is wrong with its form. Knows no option."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ortserve.gateway.configuration.lines import Place, places
from ortserve.runtime.errors import ConfigurationError

MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a file, or one of an array of tables. `lines` are those of its keys, counted from 1."""

    file: Path
    header: str  # as in the file: [server]
    line: int
    values: Mapping[str, object] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """Where a key is, for messages and reports."""
        return f"{self.file}:{self.lines.get(key, self.line)}"


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """Tables and arrays of tables by name."""

    path: Path
    tables: Mapping[str, Table]
    arrays: Mapping[str, tuple[Table, ...]]


def read_file(path: Path) -> ConfigurationFile:
    """Raises `ConfigurationError`, which names the line and the key."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}): check --config") from None
    if len(data) > MAX_BYTES:
        raise ConfigurationError(f"{path} is larger than {MAX_BYTES} bytes: is it a configuration?")
    try:
        text = data.decode()
        content = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}:{line}: not UTF-8, which TOML has to be") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(_malformed(path, text, str(error))) from None
    except RecursionError:
        raise ConfigurationError(f"{path}: nested too deeply") from None
    return _divided(path, content, list(places(text)))


def _divided(path: Path, content: Mapping[str, object], found: list[Place]) -> ConfigurationFile:
    tables: dict[str, Table] = {}
    arrays: dict[str, tuple[Table, ...]] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            tables[name] = _table(path, f"[{name}]", value, found, (name,))
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            arrays[name] = tuple(
                _table(path, f"[[{name}]]", one, found, (name, place)) for place, one in enumerate(value)
            )
        else:
            line = _line(found, (name,))
            raise ConfigurationError(f"{path}:{line}: {name} stands in no table: put it below one, such as [server]")
    return ConfigurationFile(path, tables, arrays)


def _table(
    path: Path, header: str, values: Mapping[str, object], found: list[Place], place: tuple[str | int, ...]
) -> Table:
    lines = {key: _line(found, (*place, key)) for key in values}
    return Table(path, header, _line(found, place), values, lines)


def _line(found: list[Place], wanted: tuple[str | int, ...]) -> int:
    """The first line that is about a key or a table, or about what it is in where that is one value."""
    paths = [((*one.table, *one.keys), one.line) for one in found]
    within = next((line for path, line in paths if path[: len(wanted)] == wanted), None)
    if within is not None:
        return within
    while wanted:
        wanted = wanted[:-1]
        around = next((line for path, line in paths if path == wanted), None)
        if around is not None:
            return around
    return 1


def _malformed(path: Path, text: str, message: str) -> str:
    """TOML's own words without its place, the line, and the key that is there. The value may be a secret."""
    match = re.search(r" \((?:at line (\d+), column \d+|at end of document)\)$", message)
    lines = text.splitlines()
    number = int(match[1]) if match is not None and match[1] else max(len(lines), 1)
    said = message if match is None else message[: match.start()]
    line = lines[number - 1] if number <= len(lines) else ""
    key = re.match(r"""\s*([A-Za-z0-9_."'-]+)\s*=""", line) or re.match(r"\s*(\[\[?[^\]#=]*\]?\]?)", line)
    place = f"{path}:{number}" + (f", {key[1].strip()}" if key else "")
    return f"{place}: not TOML: {said[:1].lower()}{said[1:]}"
