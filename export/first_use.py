"""Exports a checkpoint into a cache the first time it is served. Knows identities of files, no server."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ortserve.export.errors import ExportError
from ortserve.export.folder.new_folder import remove_partial_folders
from ortserve.export.open_source import open_source
from ortserve.export.publish import RECIPE, export_checkpoint
from ortserve.export.recipes.precisions import DEVICE_PRECISIONS, Device, KvPrecision
from ortserve.export.recipes.takeover import choose_precision
from ortserve.export.sources.checkpoint import TOKENIZER_FILES, WEIGHTS_INDEX, Checkpoint
from ortserve.export.sources.quantized_source import OLD_FILES
from ortserve.runtime.manifest import FORMAT_VERSION, MANIFEST_NAME

SMALL_FILES = ("config.json", "generation_config.json", WEIGHTS_INDEX, *TOKENIZER_FILES)


def ensure_exported(
    source: str | Path,
    cache_folder: Path,
    *,
    precision: str | None,
    progress: bool,
    device: Device = "cpu",
    kv: KvPrecision = "float",
) -> Path:
    """The exported folder for `source`: itself when it is one, else from the cache, else exported into it now.

    Two processes may ask at once: one exports, the other waits for it. The name in the cache carries the device, the
    precision, what keys and values are stored as, and a digest of the source's files and the exporter's recipe, so a
    changed checkpoint is exported anew. One whose proof fails is kept and marked unverified: whoever serves it decides.
    Raises `ExportError` for an unusable checkpoint or cache folder, and for a `kv` that the device has not.
    """
    if (Path(source) / MANIFEST_NAME).exists():
        return Path(source)
    with open_source(source) as checkpoint:
        precision = choose_precision(checkpoint, precision, DEVICE_PRECISIONS[device][0], requantize=False)
        recipe = precision if device == "cpu" else f"{device}-{precision}"  # int4 is another graph on each
        if kv != "float":
            recipe += f"-kv-{kv}"
        destination = cache_folder / f"{_safe(checkpoint.name)}-{recipe}-{source_identity(checkpoint)[:16]}"
        if (destination / MANIFEST_NAME).exists():
            return destination
        with _locked(destination, progress=progress):
            if not (destination / MANIFEST_NAME).exists():
                remove_partial_folders(destination)  # the lock says that nobody is writing them
                export_checkpoint(
                    checkpoint,
                    destination,
                    precision=precision,
                    device=device,
                    kv=kv,
                    progress=progress,
                    allow_unproven=True,
                )
        return destination


def source_identity(checkpoint: Checkpoint) -> str:
    """A digest that changes with the checkpoint and with what export makes of it.

    Small files by content; weights by name, size and time of modification, since hashing them takes as long as
    exporting them.
    """
    weights = sorted({stored.path for stored in checkpoint.tensors.values()})
    facts = {
        "recipe": [RECIPE, FORMAT_VERSION],
        "small": [_content_digest(checkpoint.folder / name) for name in SMALL_FILES],
        **_more_templates(checkpoint),
        **_more_settings(checkpoint),
        "weights": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _more_templates(checkpoint: Checkpoint) -> dict[str, list[list[str | None]]]:
    """Nothing for most checkpoints, whose identity is as it was before these were known."""
    named = [
        [name, _content_digest(path)] for name, path in checkpoint.tokenizer_files() if name not in TOKENIZER_FILES
    ]
    return {"templates": named} if named else {}


def _more_settings(checkpoint: Checkpoint) -> dict[str, list[str | None]]:
    """Nothing for checkpoints that are not quantized, or say how in config.json."""
    found = [digest for name in OLD_FILES if (digest := _content_digest(checkpoint.folder / name)) is not None]
    return {"quantization": [*found]} if found else {}


def _content_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "model"


@contextmanager
def _locked(destination: Path, *, progress: bool) -> Iterator[None]:
    """Holds the lock beside the destination; the system drops it when the process dies."""
    path = destination.with_name(f".{destination.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise ExportError(
            f"the cache folder {path.parent} cannot be written ({error.strerror}): name another, or export by hand"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                sys.stderr.write(f"waiting for another process that exports {destination.name}\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
