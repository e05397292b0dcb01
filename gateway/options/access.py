"""Options of who may use the server. Knows no key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ortserve.gateway.configuration.kinds import PATH, SWITCH, TEXT
from ortserve.gateway.configuration.option import option


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Access."""

    SECTION: ClassVar[str] = "access"

    api_key: str | None = option(None, TEXT, "clients must send it (none: every key is accepted)", secret=True)
    api_keys: Path | None = option(
        None,
        PATH,
        "keys with tenants, scopes, models and limits, one a line (ortserve keys new); read again when it changes",
        metavar="FILE",
    )
    admin_key: str | None = option(
        None,
        TEXT,
        "opens /admin to those who send it (none: closed to everyone without a key of scope admin)",
        secret=True,
    )
    admin_metrics: bool = option(False, SWITCH, "only keys of scope admin read /metrics (every key)")
