"""Options for plugins as the command line and the environment write them: KEY=VALUE. Knows no plugin."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ortserve.gateway.environment import default_of
from ortserve.runtime.errors import OrtserveError


class PluginOptionsError(OrtserveError):
    """Options of a plugin that cannot be read, or contradict each other."""


def add_plugin_option(add: Callable[..., Any], flag: str, help_: str) -> None:
    """Declare `flag` KEY=VALUE, which may be repeated."""
    # The environment is read in `read_plugin_options`: argparse would append to a default.
    add(flag, type=key_value, action="append", default=None, metavar="KEY=VALUE", help=help_)


def key_value(text: str) -> tuple[str, str]:
    """An argparse type: KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text} is not of the form KEY=VALUE")
    return key, value


def read_plugin_options(flag: str, given: list[tuple[str, str]] | None) -> tuple[tuple[str, str], ...]:
    """What was given, or what the environment says. Raises `PluginOptionsError`."""
    if given is not None:
        return tuple(dict(given).items())
    # A name can be given only once in the environment. There, pairs are separated by commas; a word without an equals
    # sign belongs to the value before it, as in sources=prediction,suffix.
    pairs: list[str] = []
    for part in (default_of(flag) or "").split(","):
        if "=" in part or not pairs:
            pairs.append(part.strip())
        else:
            pairs[-1] += f",{part.strip()}"
    try:
        return tuple(dict(key_value(pair) for pair in pairs if pair).items())
    except argparse.ArgumentTypeError as error:
        raise PluginOptionsError(f"ORTSERVE_{flag.lstrip('-').replace('-', '_').upper()}: {error}") from None
