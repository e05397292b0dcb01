"""The values of options: of the file, the environment and flags the last that has one. Knows no option."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ortserve.gateway.configuration.file import Table
from ortserve.gateway.configuration.kinds import MODEL
from ortserve.gateway.configuration.option import Option, Section, options_of
from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.manifest import MANIFEST_NAME

S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True)
class Origin:
    """A value, and where it came from: `FILE:LINE`, a variable, a flag, or `default`."""

    option: Option
    value: Any
    source: str

    @property
    def is_default(self) -> bool:
        """Nobody has set it."""
        return self.source == "default"


@dataclass(frozen=True, slots=True)
class Layers:
    """What may override a file: `flags` by name, only those that were given, and the environment."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def read(self, section: type[S], tables: Sequence[Table] = ()) -> tuple[S, list[Origin]]:
        """One section, of the `tables` the first that has a key. Raises `ConfigurationError`.

        Keys that no option has are not looked for: see `check_keys`.
        """
        origins = [self._find(option, tables) for option in options_of(section)]
        return section(**{origin.option.name: origin.value for origin in origins}), origins

    def _find(self, option: Option, tables: Sequence[Table]) -> Origin:
        if option.flag is not None and self.flags.get(option.name) not in (None, []):
            value, add_up = self.flags[option.name], option.declared.kind.add_up
            return Origin(option, add_up(value) if add_up else value, option.flag)
        for name in option.environment:
            if self.environment.get(name):  # set to nothing is as good as not set
                return Origin(option, _of_text(option, name, self.environment[name]), name)
        for table in tables:
            if option.name in table.values:
                return Origin(option, _of_table(option, table), table.place(option.name))
        return Origin(option, option.default, "default")


def check_keys(table: Table, sections: Sequence[type[Section]], others: Iterable[type[Section]] = ()) -> None:
    """Every key is an option of one of the sections. Raises `ConfigurationError`, which names the nearest."""
    known = [option.name for section in sections for option in options_of(section)]
    for key in table.values:
        if key in known:
            continue
        owner = next((one for one in others for option in options_of(one) if option.name == key), None)
        raise ConfigurationError(
            f"{table.place(key)}, {table.header} {key}: no such key"
            + (f"; it belongs in [{owner.SECTION}]" if owner is not None else nearest(key, known))
        )


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a message about a wrong word."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; the nearest is {near[0]}" if near else f"; there are {', '.join(known)}"


def _of_text(option: Option, name: str, text: str) -> Any:
    try:
        return option.declared.kind.read(text)
    except ValueError:
        raise ConfigurationError(f"{name}: {option.shown(text)} is not {option.declared.kind.expected}") from None


def _of_table(option: Option, table: Table) -> Any:
    value, kind = table.values[option.name], option.declared.kind
    place = f"{table.place(option.name)}, {table.header} {option.name}"
    try:
        read = kind.read_toml(value)
    except TypeError as error:
        raise ConfigurationError(f"{place}: expected {kind.expected}, not {error}") from None
    except ValueError:
        raise ConfigurationError(f"{place}: {option.shown(value)} is not {kind.expected}") from None
    folder = table.file.parent
    if kind is MODEL:
        return str(folder / read) if _is_model(folder / read) else read
    return folder / read.expanduser() if isinstance(read, Path) else read


def _is_model(path: Path) -> bool:
    """A checkpoint, an exported model or a GGUF file, not just a folder that is called as a model is."""
    return path.is_file() or any((path / name).is_file() for name in (MANIFEST_NAME, "config.json"))
