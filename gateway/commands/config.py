"""`ortserve config`: what a server would be configured by, and where each value comes from. Opens nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ortserve.gateway.configuration.layers import Origin
from ortserve.gateway.options.settings import MODELS, Resolved, add_server_options, resolve

EXAMPLE = """example:
  ortserve config                              the defaults, and what the environment changes
  ortserve config --config ortserve.toml       the same of a file: it is checked, and nothing is started
  ortserve config ./model --port 9000 --json   any words of `ortserve serve`, as JSON
"""
MASK = "********"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options: those of `serve`, and --json."""
    parser.description = "Print the configuration that `ortserve serve` with the same words would have."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_server_options(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print it; 0. Raises `ConfigurationError` for what `serve` would refuse; what it would warn of goes to stderr."""
    resolved = resolve(arguments)
    for name, near in resolved.unknown.items():
        hint = "" if near is None else f"; the nearest is {near}"
        sys.stderr.write(f"warning: {name} is no option of a server{hint}\n")
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(_as_json(resolved)), indent=2).decode() + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in _as_toml(resolved))
    return 0


def _as_json(resolved: Resolved) -> dict[str, Any]:
    """Sections of keys; models are a list of what is their own."""
    document: dict[str, Any] = {name: {} for name in resolved.origins if not _is_model(name)}
    document[MODELS] = []
    for name, origins in resolved.origins.items():
        read = {one.option.name: {"value": _plain(one), "source": one.source} for one in origins}
        if _is_model(name):
            document[MODELS].append(read)
        else:
            document[name] = read
    return document


def _as_toml(resolved: Resolved) -> Iterator[str]:
    """A file that means the same, but for secrets; where a value comes from is a comment."""
    first = True
    for name, origins in resolved.origins.items():
        if not first:
            yield ""
        first = False
        yield f"[[{MODELS}]]" if _is_model(name) else f"[{name}]"
        yield from _lines(origins)


def _lines(origins: Sequence[Origin]) -> list[str]:
    written = []
    for one in origins:
        value = _plain(one)
        left = f"# {one.option.name} is not set" if value is None else f"{one.option.name} = {_toml(value)}"
        written.append((left, one.source))
    width = min(max((len(left) for left, _ in written), default=0), 60)
    return [f"{left:<{width}}  # {source}" for left, source in written]


def _plain(one: Origin) -> Any:
    """A value as JSON and TOML have it, secrets masked."""
    if one.option.declared.is_secret and one.value is not None:
        return MASK
    if one.option.declared.kind.written is not None and one.value is not None:
        return one.option.declared.kind.written(one.value)
    if isinstance(one.value, Path):
        return str(one.value)
    if isinstance(one.value, tuple):
        if all(isinstance(pair, tuple) for pair in one.value) and one.option.declared.kind.add_up is not None:
            return dict(one.value)
        return [str(word) for word in one.value]
    return one.value


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _is_model(name: str) -> bool:
    return name.startswith(f"{MODELS} ")
