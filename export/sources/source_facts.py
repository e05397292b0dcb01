"""What a report says of the checkpoint that was exported: how to know it again, and its licence. Reads no tensor."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ortserve.export.sources.checkpoint import CARD, Checkpoint
from ortserve.export.sources.json_fields import JsonObject, read_optional_json
from ortserve.runtime.report import sample_file


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Of one checkpoint; the defaults stand for one that is not known."""

    digest: str = ""
    license: str = ""


def describe_source(checkpoint: Checkpoint) -> SourceFacts:
    """The digest changes with config.json, the weights (sizes and sampled pages) and the adapter."""
    adapter = "" if checkpoint.adapter is None else checkpoint.adapter.digest
    weights = {stored.path for stored in checkpoint.tensors.values()}
    return _describe(checkpoint.folder, checkpoint.config, weights, adapter)


def describe_folder(folder: Path) -> SourceFacts:
    """The same of a checkpoint's folder that another library reads."""
    weights = {path for path in folder.iterdir() if path.suffix == ".safetensors"} or {*folder.glob("*.bin")}
    return _describe(folder, read_optional_json(folder / "config.json"), weights, "")


def _describe(folder: Path, config: JsonObject, weights: set[Path], adapter: str) -> SourceFacts:
    sampled = [[path.name, sample_file(path)] for path in sorted(weights)]
    facts = json.dumps([config, sampled, adapter], sort_keys=True)
    return SourceFacts(hashlib.sha256(facts.encode()).hexdigest(), _license(folder, config))


def _license(folder: Path, config: JsonObject) -> str:
    """As the front matter of the model card names it, else config.json; "" where neither does."""
    stated = card_fields(folder / CARD)
    for value in (stated.get("license_name"), stated.get("license"), config.get("license")):
        if isinstance(value, str) and value.strip():
            return value.strip().splitlines()[0]
    return ""


def card_fields(path: Path) -> dict[str, object]:
    """The front matter of a model card; empty where there is none that can be read."""
    if not path.is_file():
        return {}
    from huggingface_hub import metadata_load

    try:
        fields = metadata_load(path)
    except Exception:  # YAML and decoding errors: a card is no reason not to export
        return {}
    return fields if isinstance(fields, dict) else {}
