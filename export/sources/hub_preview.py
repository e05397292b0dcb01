"""A checkpoint on the hub as its headers describe it, for a plan before the download. Keeps nothing."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.export.errors import ExportError
from ortserve.export.sources.checkpoint import (
    HUB_PATTERNS,
    WEIGHT_PATTERNS,
    Checkpoint,
    describe_checkpoint,
    hub_errors,
)
from ortserve.export.sources.safetensors_file import DTYPES


@dataclass(frozen=True, slots=True)
class RemoteTensor:
    """Type and shape of a tensor that is not here."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Never possible. Raises `ExportError`."""
        del start, stop
        raise ExportError(f"{self.path.name} is on the hub: export without --dry-run downloads it")


@contextmanager
def preview_checkpoint(hub_id: str) -> Iterator[tuple[Checkpoint, int]]:
    """The checkpoint without weights, and the bytes that an export would download.

    Its small files lie in a temporary folder. Raises `ExportError` as a download does, and for quantized checkpoints,
    whose plan needs their integers.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with TemporaryDirectory(prefix="ortserve-hub-") as scratch:
        with hub_errors(hub_id):
            api = HfApi()
            files = {
                file.rfilename: file.size or 0 for file in api.model_info(hub_id, files_metadata=True).siblings or ()
            }
            wanted = {name: size for name, size in files.items() if _matches(name, HUB_PATTERNS)}
            for name in wanted:
                if not _matches(name, WEIGHT_PATTERNS):
                    hf_hub_download(hub_id, name, local_dir=scratch)
            tensors = {
                name: RemoteTensor(Path(file), DTYPES[info.dtype], tuple(info.shape))
                for file, header in api.get_safetensors_metadata(hub_id).files_metadata.items()
                for name, info in header.tensors.items()
                if info.dtype in DTYPES
            }
        yield describe_checkpoint(Path(scratch), source=hub_id, tensors=tensors), sum(wanted.values())


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
