"""An encoder on ONNX Runtime: a list of inputs in, one row of numbers for each out. Knows no queue and no text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ortserve.runtime.encoders.manifest import EncoderManifest
from ortserve.runtime.encoders.queue import EncoderInput
from ortserve.runtime.errors import EngineError, ModelError
from ortserve.runtime.session import Session, check_int8_kernels, require_version

Rows = npt.NDArray[np.float32]


class Encoder:
    """One loaded encoder. Not thread-safe: one thread runs it."""

    def __init__(self, folder: Path, manifest: EncoderManifest, *, num_threads: int | None = None) -> None:
        """Load the graph.

        Raises `ModelError` for an unusable graph, `DeviceError` for an ONNX Runtime or a CPU that cannot run it.
        """
        require_version(manifest.min_onnxruntime)
        if manifest.precision == "int8":
            check_int8_kernels()
        path = folder / manifest.graph
        if not path.is_file():
            raise ModelError(f"{path} is missing: export the model again")
        self.manifest = manifest
        self._session = Session(path, num_threads=num_threads)

    def encode(self, inputs: Sequence[EncoderInput]) -> Rows:
        """`[len(inputs), num_outputs]`. Raises `EngineError` when the graph computes something unusable."""
        feeds = pad_batch(inputs, pad_token_id=self.manifest.pad_token_id)
        (rows,) = self._session.run({name: feeds[name] for name in self.manifest.inputs})
        expected = (len(inputs), self.manifest.num_outputs)
        if rows.shape != expected or rows.dtype != np.float32:
            raise EngineError(f"the graph gave {rows.dtype} {rows.shape}, its manifest says float32 {expected}")
        return rows.astype(np.float32, copy=False)


def pad_batch(inputs: Sequence[EncoderInput], *, pad_token_id: int) -> dict[str, npt.NDArray[np.int64]]:
    """The three arrays a graph may ask for, each `[len(inputs), longest]`."""
    shape = (len(inputs), max(map(len, inputs)))
    ids = np.full(shape, pad_token_id, np.int64)
    mask = np.zeros(shape, np.int64)
    types = np.zeros(shape, np.int64)
    for row, one in enumerate(inputs):
        ids[row, : len(one)] = one.ids
        mask[row, : len(one)] = 1
        if one.second_start is not None:
            types[row, one.second_start : len(one)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
