"""One declaration per option, from which its key, its environment name and its flag follow. Knows no source.

    @dataclass(frozen=True, slots=True)
    class ServerSettings:
        SECTION: ClassVar[str] = "server"

        max_things: int | None = option(None, POSITIVE, "things at once (16)", metavar="N")

is `max_things` in `[server]` of a file, `ORTSERVE_MAX_THINGS` and `--max-things N`; its default is the class's.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, cast

from ortserve.gateway.configuration.kinds import Kind

PREFIX = "ORTSERVE_"
_METADATA = "option"

D = TypeVar("D")
T = TypeVar("T")


class Section(Protocol):
    """A frozen dataclass whose fields are options."""

    SECTION: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Declaration:
    """What `option` was given."""

    kind: Kind[Any]
    help: str
    metavar: str | None
    is_plain: bool
    is_secret: bool
    has_flag: bool


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a section, with the names it goes by."""

    section: str
    name: str
    default: Any
    declared: Declaration

    @property
    def flag(self) -> str | None:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}" if self.declared.has_flag else None

    @property
    def environment(self) -> tuple[str, ...]:
        """Variables, the one that wins first."""
        if not self.declared.has_flag:
            return ()
        name = self.name.upper()
        return (f"{PREFIX}{name}", name) if self.declared.is_plain else (f"{PREFIX}{name}",)

    @property
    def key(self) -> str:
        """In a file."""
        return f"{self.section}.{self.name}"

    def shown(self, value: Any) -> str:
        """A wrong value in a message: secrets are not repeated."""
        return "what is given" if self.declared.is_secret else repr(value)


def option(
    default: D,
    kind: Kind[T],
    help: str,
    *,
    metavar: str | None = None,
    plain: bool = False,
    secret: bool = False,
    flag: bool = True,
) -> D | T:
    """Declare a field of a section. `plain`: the environment also has it without the prefix, as HOST.

    Without a `flag` the file alone has it.
    """
    declared = Declaration(kind, help, metavar, plain, secret, flag)
    return cast("D | T", dataclasses.field(default=default, metadata={_METADATA: declared}))


def options_of(section: type[Section]) -> Iterator[Option]:
    """In the order they are declared."""
    for field in dataclasses.fields(section):
        yield Option(section.SECTION, field.name, field.default, field.metadata[_METADATA])


def add_options(parser: argparse.ArgumentParser, *sections: type[Section]) -> None:
    """Declare the flags. What is not given does not appear among the parsed arguments."""
    for section in sections:
        group = parser.add_argument_group(" ".join((section.__doc__ or "").split(".")[0].split()).lower())
        for one in options_of(section):
            if one.flag is not None:
                _add_flag(group, one)


def _add_flag(group: argparse._ArgumentGroup, one: Option) -> None:
    declared, kind = one.declared, one.declared.kind
    help_ = declared.help.replace("%", "%%")
    if kind.is_switch:
        group.add_argument(str(one.flag), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=help_)
    else:
        group.add_argument(
            str(one.flag),
            type=argument(kind, is_secret=declared.is_secret),
            action="append" if kind.add_up else "store",
            default=argparse.SUPPRESS,
            choices=kind.choices or None,
            metavar=declared.metavar,
            help=help_,
        )


class argument:  # noqa: N801  # used as a function, which argparse calls by its name
    """A kind as an argparse type: says what is expected."""

    def __init__(self, kind: Kind[Any], *, is_secret: bool = False) -> None:
        self._kind = kind
        self._is_secret = is_secret

    def __call__(self, text: str) -> Any:
        """Part of argparse."""
        try:
            return (self._kind.read_flag or self._kind.read)(text)
        except ValueError:
            shown = "what is given" if self._is_secret else repr(text)
            raise argparse.ArgumentTypeError(f"{shown} is not {self._kind.expected}") from None
