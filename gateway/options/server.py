"""Options of the server around its models. Knows no socket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ortserve.gateway.configuration.kinds import PATH, PORT, SECONDS, SWITCH, TEXT, choice
from ortserve.gateway.configuration.option import option
from ortserve.gateway.logs import LEVELS


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Server."""

    SECTION: ClassVar[str] = "server"

    host: str = option("127.0.0.1", TEXT, "address to listen on (127.0.0.1)", plain=True)
    port: int = option(8000, PORT, "0 takes a free one (8000)", plain=True)
    served_name: str | None = option(None, TEXT, "name of the first model (its own)")
    strict_parameters: bool = option(
        False, SWITCH, "refuse fields that no API has instead of naming them in x-ortserve-ignored"
    )
    warm: Path | None = option(
        None,
        PATH,
        "JSON lines of messages or prompts whose prefixes are computed at start and kept",
        metavar="FILE",
    )
    drain: float = option(30.0, SECONDS, "seconds to finish on SIGTERM (30)", metavar="S")
    drain_delay: float = option(
        0.0,
        SECONDS,
        "seconds after SIGTERM in which requests are still taken while readiness fails, for a proxy to see it (0)",
        metavar="S",
    )
    quiet: bool = option(False, SWITCH, "print nothing on stdout")


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """Logging."""

    SECTION: ClassVar[str] = "logging"

    log_level: str = option("info", choice(*LEVELS), "of the JSON log on stderr (info)")
    log_prompts: bool = option(False, SWITCH, "log the bodies of requests too, prompts and all (never)")
