"""Whether an exported folder may be served: a report proves it, and its files are those it proves. Knows no model."""

from __future__ import annotations

from pathlib import Path

from ortserve.gateway.logs import log
from ortserve.runtime.errors import UnverifiedError


def check_verified(folder: Path, *, allow: bool) -> bool:
    """False for a folder that may run although nothing proves it, which is logged.

    Raises `UnverifiedError` when it may not, and `ManifestError` for a folder that is no model.
    """
    from ortserve.runtime.encoders.manifest import read_any_manifest
    from ortserve.runtime.report import find_doubts

    manifest = read_any_manifest(folder)
    doubts = find_doubts(folder, digest=manifest.digest)
    if not doubts:
        return True
    if not allow:
        raise UnverifiedError(
            f"{folder} is unverified ({'; '.join(doubts)}): prove it with ortserve verify {folder} --against"
            f" CHECKPOINT, export it again, or run it as it is with --allow-unverified"
        )
    log().warning("unverified", model=manifest.name, reasons=doubts)
    return False


def report_draft(folder: Path) -> None:
    """Log that the small model of a drafter is unverified: a wrong guess costs time and never changes a reply."""
    check_verified(folder, allow=True)
