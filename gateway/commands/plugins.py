"""`ortserve plugins`: what is installed and from where, read from package metadata. Imports no plugin."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass

import msgspec

from ortserve.plugins.registry import DRAFTERS, GROUPS, PROMPT_CACHES, installed
from ortserve.runtime.config import EngineConfig

EXAMPLE = """example:
  ortserve plugins
  ortserve plugins --json
  ortserve serve --prompt-cache NAME      serve with the one of that name
"""


@dataclass(frozen=True, slots=True)
class Listed:
    """One plugin. `is_claimed_twice`: another distribution has the same name, so it cannot be used."""

    group: str
    name: str
    distribution: str
    version: str
    target: str
    is_default: bool
    is_claimed_twice: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "List installed plugins: what they are for, their names, and who brought them."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the list; 0."""
    plugins = list_plugins()
    if arguments.json:
        data = msgspec.json.encode({"plugins": [asdict(plugin) for plugin in plugins]})
        sys.stdout.write(msgspec.json.format(data, indent=2).decode() + "\n")
        return 0
    for group in GROUPS:
        sys.stdout.write(f"{group}\n")
        lines = [_line(plugin) for plugin in plugins if plugin.group == group]
        sys.stdout.write("".join(lines) or "  nothing is installed\n")
    return 0


def list_plugins() -> list[Listed]:
    """Everything that claims a name in one of the groups."""
    config = EngineConfig()
    defaults = {PROMPT_CACHES: config.prompt_cache, DRAFTERS: config.drafter}
    plugins = []
    for group in GROUPS:
        found = installed(group)
        names = [one.name for one in found]
        plugins += [
            Listed(
                group=group,
                name=one.name,
                distribution=one.distribution,
                version=one.version,
                target=one.target,
                is_default=one.name == defaults.get(group),
                is_claimed_twice=names.count(one.name) > 1,
            )
            for one in found
        ]
    return plugins


def _line(plugin: Listed) -> str:
    notes = ", the default" if plugin.is_default else ""
    if plugin.is_claimed_twice:
        notes += "; claimed twice: uninstall one of them"
    return f"  {plugin.name:<12}{plugin.target}, from {plugin.distribution} {plugin.version}{notes}\n"
