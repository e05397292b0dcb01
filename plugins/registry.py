"""Finds plugins by entry point and makes the one that is named. Built-ins use the same door as everyone else.

Listing reads metadata only: a broken plugin that nobody names does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

PROMPT_CACHES = "ortserve.prompt_cache"
DRAFTERS = "ortserve.drafter"
GROUPS = (PROMPT_CACHES, DRAFTERS)


class PluginError(Exception):
    """A plugin cannot be used; `str(error)` is one line: which, from where, what to do."""


@dataclass(frozen=True, slots=True)
class Installed:
    """One plugin as its package's metadata declares it."""

    group: str
    name: str
    distribution: str
    version: str
    target: str  # "package.module:attribute"


def installed(group: str) -> list[Installed]:
    """Everything that claims a name in `group`, sorted by name; imports nothing."""
    return sorted((_described(point) for point in _points(group)), key=lambda one: (one.name, one.distribution))


def load(group: str, name: str) -> Callable[..., Any]:
    """The factory that `name` stands for.

    Raises `PluginError` when nobody or more than one distribution claims the name, or when importing it fails.
    """
    points = [point for point in _points(group) if point.name == name]
    if not points:
        names = ", ".join(sorted({point.name for point in _points(group)})) or "none"
        raise PluginError(f"no {group} plugin is called {name}: installed are {names}")
    if len(points) > 1:
        owners = " and ".join(sorted(_described(point).distribution for point in points))
        raise PluginError(f"{owners} both claim the {group} plugin {name}: uninstall one of them")
    try:
        factory = points[0].load()
    except Exception as error:  # whatever a stranger's module raises on import
        owner = _described(points[0])
        raise PluginError(
            f"the {group} plugin {name} of {owner.distribution} {owner.version} cannot be imported"
            f" ({type(error).__name__}: {error}): fix or uninstall it, or name another"
        ) from error
    if not callable(factory):
        raise PluginError(
            f"the {group} plugin {name} is {points[0].value}, which cannot be called: report it to its author"
        )
    return factory  # type: ignore[no-any-return]  # an entry point is untyped by nature


def _points(group: str) -> list[EntryPoint]:
    """Without the same distribution twice, as an editable install and a stale build folder would list it."""
    found: dict[tuple[str, str, str], EntryPoint] = {}
    for point in entry_points(group=group):
        found.setdefault((point.name, _described(point).distribution, point.value), point)
    return list(found.values())


def _described(point: EntryPoint) -> Installed:
    owner = point.dist
    name, version = ("unknown", "unknown") if owner is None else (owner.name, owner.version)
    return Installed(point.group, point.name, name, version, point.value)
