"""Checks that an exported folder is whole: digest, external data, and that the graph loads and runs. Knows no proof."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx

from ortserve.export.errors import CheckFailedError
from ortserve.export.proof.graph_run import RowInput
from ortserve.export.proof.paged_run import open_graph_run
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.runtime.encoders.manifest import EncoderManifest
from ortserve.runtime.errors import OrtserveError
from ortserve.runtime.manifest import MANIFEST_NAME, Manifest, read_manifest

GRAPH_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"


def check_integrity(folder: Path) -> Manifest:
    """The manifest of a whole folder.

    Raises `ManifestError` when there is no readable manifest, and `CheckFailedError` when graph, weights or tokenizer
    are missing, damaged or not those the manifest was written for.
    """
    manifest = read_manifest(folder)
    graph = read_graph(folder, manifest)
    check_external_data((folder / manifest.graph).parent, graph)
    if model_digest(folder, manifest) != manifest.digest:
        raise CheckFailedError(
            f"{folder}: graph, weights or tokenizer.json changed since the export: export the checkpoint again"
        )
    _check_runs(folder, manifest)
    return manifest


def check_adapter(folder: Path, manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raise `CheckFailedError` when the model was not made with the adapter that the checkpoint has, or lacks."""
    if manifest.adapter == checkpoint.adapter:
        return
    if manifest.adapter is None:
        raise CheckFailedError(f"{folder} was exported without an adapter: leave out --adapter")
    kind = "an" if checkpoint.adapter is None else "another"
    raise CheckFailedError(f"{folder} holds {kind} adapter, {manifest.adapter.name}: name its folder with --adapter")


def model_digest(folder: Path, manifest: Manifest | EncoderManifest) -> str:
    """sha256 over the sha256 of graph, weights and tokenizer.json; a missing file counts as empty.

    A graph of another exporter may have its weights in several files, in order of their names.
    """
    data = file_digest(folder / DATA_NAME)
    if isinstance(manifest, Manifest) and manifest.padded is not None:
        tensors = read_graph(folder, manifest).graph.initializer
        names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
        beside = (folder / manifest.graph).parent
        data = b"".join(file_digest(beside / Path(name).name) for name in sorted(names))
    return join_digests(file_digest(folder / manifest.graph), data, file_digest(folder / "tokenizer.json"))


def join_digests(graph: bytes, data: bytes, tokenizer: bytes) -> str:
    """The manifest's digest from those of its three parts."""
    return hashlib.sha256(graph + data + tokenizer).hexdigest()


def file_digest(path: Path) -> bytes:
    """sha256 of a file; a missing one counts as empty."""
    if not path.exists():
        return hashlib.sha256().digest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def read_graph(folder: Path, manifest: Manifest | EncoderManifest) -> onnx.ModelProto:
    """The graph without its weights. Raises `CheckFailedError` when it is missing or damaged."""
    path = folder / manifest.graph
    try:
        return onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise CheckFailedError(f"{path} cannot be read ({error.strerror}): export the checkpoint again") from None
    except Exception:  # protobuf's own DecodeError
        raise CheckFailedError(f"{path} is no ONNX graph: export the checkpoint again") from None


def check_external_data(folder: Path, graph: onnx.ModelProto) -> None:
    """Raise `CheckFailedError` when the file beside the graph is shorter than the graph says."""
    for tensor in graph.graph.initializer:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        if not fields:
            continue
        path = folder / Path(fields["location"]).name
        size = path.stat().st_size if path.exists() else 0
        end = int(fields["offset"]) + int(fields["length"])
        if end > size:
            raise CheckFailedError(
                f"{path} is truncated: {tensor.name} ends at byte {end}, the file has {size}: export again"
            )


def _check_runs(folder: Path, manifest: Manifest) -> None:
    try:
        (logits,) = open_graph_run(folder, manifest, num_rows=1, capacity=2).run([RowInput([0], 0)])
    except OrtserveError:
        raise
    except Exception as error:  # ONNX Runtime raises many kinds, and a manifest may say anything
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckFailedError(
            f"{folder / manifest.graph} cannot be run as {MANIFEST_NAME} says ({reason[:200]}): export again"
        ) from error
    if logits.shape != (1, manifest.vocab_size) or not np.isfinite(logits).all():
        raise CheckFailedError(f"{folder / manifest.graph} runs but computes no usable logits: export again")
