"""Options of speculation, and what they mean to the engine. Knows no drafter but the name of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ortserve.gateway.configuration.kinds import MODEL, PAIRS, TEXT, Pairs
from ortserve.gateway.configuration.option import option
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import MANIFEST_NAME

MODEL_DRAFTER = "model"  # the drafter that asks a small model
BUNDLED = "pocket"  # names of the bundled model and of the small one that belongs to it
BUNDLED_DRAFT = "pocket-draft"


@dataclass(frozen=True, slots=True)
class DrafterSettings:
    """Speculative decoding."""

    SECTION: ClassVar[str] = "drafter"

    drafter: str = option(
        EngineConfig().drafter,
        TEXT,
        f"guesses tokens ahead: a name that `ortserve plugins` lists, or none ({EngineConfig().drafter})",
        metavar="NAME",
    )
    drafter_option: Pairs = option((), PAIRS, "an option of the drafter itself; may be repeated", metavar="KEY=VALUE")
    draft_model: str | None = option(
        None,
        MODEL,
        "small model with the same tokenizer for the drafter: exported folder, checkpoint or hub id"
        " (the bundled model's own)",
        metavar="MODEL",
    )


def draft_source(settings: DrafterSettings, model: str | None) -> str | None:
    """The small model of `model`: a folder or hub id; None where none is named or none would be asked."""
    if settings.draft_model is not None:
        return settings.draft_model
    is_asked = model in (None, BUNDLED) and _asks_a_model(settings.drafter, dict(settings.drafter_option))
    return BUNDLED_DRAFT if is_asked else None


def find_draft_model(
    settings: DrafterSettings, model: str | None, resolve_model: Callable[[str | None], Path]
) -> str | None:
    """The exported folder of the small model of `model`; None where there is none.

    `resolve_model` exports a checkpoint on first use. Raises as it does.
    """
    name = draft_source(settings, model)
    if name is None:
        return None
    if (Path(name) / MANIFEST_NAME).is_file():
        return str(name)
    return str(resolve_model(name))


def _asks_a_model(drafter: str, options: Mapping[str, str]) -> bool:
    sources = [source.strip() for source in options.get("sources", "").split(",")]
    return drafter == MODEL_DRAFTER or MODEL_DRAFTER in sources
