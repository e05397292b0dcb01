"""Is something an exported model? Looks at one file, and imports nothing of export."""

from __future__ import annotations

from pathlib import Path

from ortserve.runtime.manifest import MANIFEST_NAME


def exported_folder(source: str | None) -> Path | None:
    """The folder itself when it is already an exported model."""
    return Path(source) if source and (Path(source) / MANIFEST_NAME).is_file() else None
