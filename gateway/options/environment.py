"""Defaults of the options of verbs that talk to a server: `--admin-key` is ORTSERVE_ADMIN_KEY. Knows no option.

What a server itself is configured by is read in `settings`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping


def default_of(
    flag: str, fallback: str | None = None, *, plain: bool = False, environment: Mapping[str, str] | None = None
) -> str | None:
    """The environment's value of a flag. `plain` also reads the bare name, as HOST for --host."""
    environment = os.environ if environment is None else environment
    name = flag.lstrip("-").replace("-", "_").upper()
    value = environment.get(f"ORTSERVE_{name}")
    if value is None and plain:
        value = environment.get(name)
    return value or fallback
