"""What a check found, as a value. Knows no checks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad it is."""

    FINE = "fine"
    NOTE = "note"  # works, but slower or smaller than it could
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A remedy is one line: a command where there is one."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str | None = None


def fine(name: str, detail: str) -> Finding:
    """Nothing to do."""
    return Finding(name, Verdict.FINE, detail)


def note(name: str, detail: str, remedy: str | None = None) -> Finding:
    """Works, with a disadvantage."""
    return Finding(name, Verdict.NOTE, detail, remedy)


def broken(name: str, detail: str, remedy: str) -> Finding:
    """Must be repaired."""
    return Finding(name, Verdict.BROKEN, detail, remedy)
