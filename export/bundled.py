"""Where the checkpoints that ship with the package lie. Knows their names, not what is in them."""

from __future__ import annotations

from pathlib import Path

from ortserve.export.errors import ExportError

POCKET = "pocket"


def bundled_model() -> Path:
    """The trained pocket checkpoint. Raises `ExportError` when this installation lacks it."""
    return _bundled(Path(__file__).parent / POCKET)


def bundled_draft() -> Path:
    """Its smaller sibling with the same tokenizer. Raises `ExportError` when this installation lacks it."""
    return _bundled(Path(__file__).parent / POCKET / "draft")


def resolve_source(source: str) -> str | Path:
    """`pocket` and `pocket-draft` name the bundled checkpoints where no such folder exists."""
    if Path(source).exists():
        return source
    if source == POCKET:
        return bundled_model()
    return bundled_draft() if source == f"{POCKET}-draft" else source


def _bundled(folder: Path) -> Path:
    if not (folder / "config.json").exists():
        raise ExportError(f"the bundled checkpoint {folder} is missing: reinstall ortserve, or name a model")
    return folder
