"""Options of what the server keeps between requests. Knows no store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ortserve.gateway.configuration.kinds import PATH, SECONDS, SIZE
from ortserve.gateway.configuration.option import option
from ortserve.gateway.store.files import FileBounds
from ortserve.gateway.store.state import TTL_S, StateOptions


@dataclass(frozen=True, slots=True)
class StateSettings:
    """Responses, conversations and files."""

    SECTION: ClassVar[str] = "state"

    state_dir: Path | None = option(
        None, PATH, "keep them there, across restarts (in memory, gone with the process)", metavar="DIR"
    )
    state_size: int | None = option(
        None, SIZE, "most bytes of them, the oldest give way (64MiB in memory, 1GiB in DIR)", metavar="SIZE"
    )
    state_ttl: float = option(TTL_S, SECONDS, f"seconds since their last use ({TTL_S:.0f}: 30 days)", metavar="S")
    files_size: int = option(
        2 * 2**30, SIZE, "most bytes of uploaded files and batch results; more are refused (2GiB)", metavar="SIZE"
    )


def state_options(settings: StateSettings) -> StateOptions:
    """What the stores are opened with."""
    return StateOptions(
        settings.state_dir,
        settings.state_size,
        settings.state_ttl,
        FileBounds(min(FileBounds().max_file_bytes, settings.files_size), settings.files_size),
    )
