"""What a value of an option may be, and how it is written in text and in TOML. Knows no option and no source."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
WORDS_ON = ("1", "true", "yes", "on")
WORDS_OFF = ("0", "false", "no", "off")

T = TypeVar("T")
W = TypeVar("W", bound=str)
Pairs: TypeAlias = tuple[tuple[str, str], ...]
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One type of value.

    `read` takes the text of a flag or of the environment, and raises `ValueError` where it is not what is `expected`,
    a noun with its article. `types` are those of TOML that are accepted; their values are read as the text they are
    written as, or by `from_toml`. A switch is a flag without a value. The values of a repeated flag add up.
    """

    expected: str
    read: Callable[[str], T]
    types: tuple[type, ...] = (str,)
    from_toml: Callable[[object], T] | None = None
    choices: tuple[str, ...] = ()
    is_switch: bool = False
    read_flag: Callable[[str], T] | None = None  # where a flag may be repeated: one of its values
    add_up: Callable[[Sequence[T]], T] | None = None
    written: Callable[[T], object] | None = None  # the value as TOML has it, where that is not the value itself

    def read_toml(self, value: object) -> T:
        """The value of a key in a file. Raises `TypeError`, which says what it is instead, or `ValueError`."""
        if type(value) not in self.types:
            raise TypeError(TOML_TYPES.get(type(value), "a date or time"))
        if self.from_toml is not None:
            return self.from_toml(value)
        return self.read(str(value).lower() if isinstance(value, bool) else str(value))


TOML_TYPES: dict[type, str] = {
    str: "a string", int: "an integer", float: "a float", bool: "a boolean", list: "an array", dict: "a table",
}  # fmt: skip


def _switch(text: str) -> bool:
    if text.lower() not in WORDS_ON + WORDS_OFF:
        raise ValueError
    return text.lower() in WORDS_ON


def positive(text: str) -> int:
    """A whole number above zero. Raises `ValueError`."""
    value = int(text)
    if value <= 0:
        raise ValueError
    return value


def natural(text: str) -> int:
    """A whole number of at least zero. Raises `ValueError`."""
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def port(text: str) -> int:
    """0 (any free one) to 65535. Raises `ValueError`."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError
    return value


def seconds(text: str) -> float:
    """A number of at least zero. Raises `ValueError`."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def num_bytes(text: str) -> int:
    """1500000, 512MB or 2GiB. Raises `ValueError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?|)b?", text.strip().lower())
    if match is None:
        raise ValueError
    return int(float(match[1]) * UNITS[match[2]])


def _not_empty(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError
    return text


def _path(text: str) -> Path:
    return Path(_not_empty(text))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _words_of_toml(value: object) -> tuple[str, ...]:
    assert isinstance(value, list)
    if not all(isinstance(word, str) and word for word in value):
        raise TypeError("an array with something else in it")
    return tuple(value)


def _networks(words: Sequence[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(word, strict=False) for word in words)


def key_value(text: str) -> tuple[str, str]:
    """KEY=VALUE. Raises `ValueError`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError
    return key.strip(), value


def _pairs(text: str) -> Pairs:
    """Commas separate pairs; a word without an equals sign belongs to the value before it: sources=ngram,suffix."""
    pairs: list[str] = []
    for part in text.split(","):
        if "=" in part or not pairs:
            pairs.append(part.strip())
        else:
            pairs[-1] += f",{part.strip()}"
    return tuple(dict(key_value(pair) for pair in pairs if pair).items())


def _pairs_of_toml(value: object) -> Pairs:
    assert isinstance(value, dict)
    if not all(isinstance(one, str | int | float) for one in value.values()):
        raise TypeError("a table with something else than strings and numbers in it")
    return tuple((key, str(one).lower() if isinstance(one, bool) else str(one)) for key, one in value.items())


def _merged(given: Sequence[Pairs]) -> Pairs:
    return tuple(dict(pair for pairs in given for pair in pairs).items())


def choice(*words: W) -> Kind[W]:
    """One of these words."""

    def read(text: str) -> W:
        found = next((word for word in words if word == text), None)
        if found is None:
            raise ValueError
        return found

    return Kind(f"one of {', '.join(words)}", read, choices=words)


TEXT = Kind("a string", str)
SWITCH = Kind("true or false", _switch, (bool,), is_switch=True)
PORT = Kind("a port between 0 and 65535", port, (int,))
POSITIVE = Kind("a whole number above 0", positive, (int,))
NATURAL = Kind("a whole number of at least 0", natural, (int,))
SECONDS = Kind("a number of at least 0", seconds, (int, float))
SIZE = Kind("a size such as 512MB or 2GiB", num_bytes, (str, int))
MODEL = Kind("a folder or a hub id", _not_empty)  # in a file, relative to its folder where that is a model
PATH = Kind("a path", _path)  # in a file, relative to its folder
PAIRS = Kind(
    "of the form KEY=VALUE, or in a file a table",
    _pairs,
    (dict,),
    _pairs_of_toml,
    read_flag=lambda text: (key_value(text),),
    add_up=_merged,
)
WORDS = Kind("words with commas between them, or in a file an array of strings", _words, (list,), _words_of_toml)
NETWORKS: Kind[tuple[Network, ...]] = Kind(
    "addresses or networks such as 10.0.0.0/8 with commas between them, or in a file an array of them",
    lambda text: _networks(_words(text)),
    (list,),
    lambda value: _networks(_words_of_toml(value)),
)
