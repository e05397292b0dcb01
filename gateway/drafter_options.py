"""Command-line options of speculation, and what they mean to the engine. Knows no drafter but the name of one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from ortserve.gateway.environment import default_of
from ortserve.gateway.plugin_options import add_plugin_option, read_plugin_options
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import MANIFEST_NAME

MODEL_DRAFTER = "model"  # the drafter that asks a small model
BUNDLED = "pocket"  # names of the bundled model and of the small one that belongs to it
BUNDLED_DRAFT = "pocket-draft"
_OPTION = "--drafter-option"


def add_drafter_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the environment supplies their defaults."""
    add = parser.add_argument_group("speculative decoding").add_argument
    name = EngineConfig().drafter
    add(
        "--drafter",
        default=default_of("--drafter", name),
        metavar="NAME",
        help=f"guesses tokens ahead: a name that `ortserve plugins` lists, or none ({name})",
    )
    add_plugin_option(add, _OPTION, "an option of the drafter itself; may be repeated")
    add(
        "--draft-model",
        default=default_of("--draft-model"),
        metavar="MODEL",
        help="small model with the same tokenizer for the drafter: exported folder, checkpoint or hub id"
        " (the bundled model's own)",
    )


def drafter_options(arguments: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """The options the drafter is made with."""
    return read_plugin_options(_OPTION, arguments.drafter_option)


def find_draft_model(arguments: argparse.Namespace, resolve_model: Callable[[str | None], Path]) -> str | None:
    """The exported folder of the small model; None where none is named or none would be asked.

    `resolve_model` exports a checkpoint on first use. Raises as it does.
    """
    name = arguments.draft_model
    if name is None:
        models = [arguments.model] if isinstance(arguments.model, str) else arguments.model or []
        is_bundled = not models or BUNDLED in models
        if not is_bundled or not _asks_a_model(arguments.drafter, dict(drafter_options(arguments))):
            return None
        name = BUNDLED_DRAFT
    if (Path(name) / MANIFEST_NAME).is_file():
        return str(name)
    return str(resolve_model(name))


def _asks_a_model(drafter: str, options: Mapping[str, str]) -> bool:
    sources = [source.strip() for source in options.get("sources", "").split(",")]
    return drafter == MODEL_DRAFTER or MODEL_DRAFTER in sources
