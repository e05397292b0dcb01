"""Opens what transformers reads in optimum's environment: a folder or hub id, whatever types its tensors have."""

from __future__ import annotations

from pathlib import Path

from ortserve.export.errors import ExportError
from ortserve.export.sources.checkpoint import Checkpoint, describe_checkpoint, foreign_folder
from ortserve.export.sources.json_fields import read_optional_json


def open_for_optimum(source: str | Path) -> Checkpoint:
    """Its files, without tensors: those are read by transformers alone.

    Raises `ExportError` when it is missing, a GGUF file, or quantized.
    """
    if Path(source).suffix == ".gguf" and not Path(source).is_dir():
        raise ExportError(f"{source} is a GGUF file, which --via optimum does not take: name a checkpoint folder")
    folder, _ = foreign_folder(source)
    named = folder.resolve().name if Path(source).is_dir() else str(source)
    if read_optional_json(folder / "config.json").get("quantization_config") is not None:
        raise ExportError(f"{named} is quantized, which --via optimum does not take: name the unquantized checkpoint")
    return describe_checkpoint(folder, source=named, tensors={})
