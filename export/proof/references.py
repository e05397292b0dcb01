"""Chooses what a proof compares with: transformers where it is installed and reads the checkpoint, NumPy otherwise.

Both are independent of the graph builders; transformers is also independent of us.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ortserve.export.architecture import Architecture
from ortserve.export.errors import ExportError, UnreadableError
from ortserve.export.float_reference.forward import Compute, Floats, Watch, reference_logits
from ortserve.export.folder.versions import version_of
from ortserve.export.recipes.precisions import ReferenceName
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.runtime.host.machine import memory_budget

NUMPY = "independent NumPy float32 forward pass"
NEEDED = ("torch", "transformers")
INSTALL = "pip install 'ortserve[reference]'"
ROOM = 1.3  # of the weights in float32: what a forward pass of a few hundred tokens takes on top


@dataclass(frozen=True, slots=True)
class Reference:
    """Logits after every token of every sequence, each `[length, vocab_size]`, and whose they are.

    `compute` also shows what layers give; transformers norms what the last one gives, so that one is not shown.
    """

    description: str
    compute: Compute
    libraries: Mapping[str, str] = field(default_factory=dict)


def open_reference(name: ReferenceName, checkpoint: Checkpoint, architecture: Architecture) -> Reference:
    """Raises `ExportError` when transformers is asked for and missing, or cannot read the checkpoint.

    `auto` then takes NumPy, and the description says why.
    """
    if name == "numpy":
        return _numpy(checkpoint, architecture, "")
    missing = _missing()
    if missing:
        if name == "transformers":
            raise ExportError(f"--reference transformers needs {missing}: {INSTALL}")
        return _numpy(checkpoint, architecture, "")
    try:
        return _transformers(checkpoint, architecture, vocab_size=architecture.vocab_size)
    except UnreadableError as error:
        if name == "transformers":
            raise
        return _numpy(checkpoint, architecture, f" ({error})")


def open_outside_reference(checkpoint: Checkpoint, *, vocab_size: int) -> Reference:
    """Of a model that has no builder here, which transformers alone knows.

    Raises `UnreadableError` where it is not installed, or cannot read the checkpoint.
    """
    missing = _missing()
    if missing:
        raise UnreadableError(f"{missing} not installed: {INSTALL}")
    return _transformers(checkpoint, None, vocab_size=vocab_size)


def _missing() -> str:
    """Libraries that transformers' logits need and that are not here."""
    return " and ".join(library for library in NEEDED if find_spec(library) is None)


def _transformers(checkpoint: Checkpoint, architecture: Architecture | None, *, vocab_size: int) -> Reference:
    _check_readable(checkpoint)
    from ortserve.export.proof.transformers_reference import open_transformers

    compute = open_transformers(checkpoint, architecture, vocab_size=vocab_size)
    libraries = {library: version_of(library) for library in NEEDED}
    versions = " on ".join(f"{library} {libraries[library]}" for library in reversed(NEEDED))
    return Reference(f"{versions}, float32, eager attention", compute, libraries)


def _numpy(checkpoint: Checkpoint, architecture: Architecture, reason: str) -> Reference:
    def compute(sequences: Sequence[Sequence[int]], watch: Watch | None) -> list[Floats]:
        return reference_logits(checkpoint, architecture, sequences, watch=watch)

    return Reference(f"{NUMPY}{reason}", compute)


def _check_readable(checkpoint: Checkpoint) -> None:
    """Raise `UnreadableError` for what transformers would need more than torch, or more memory, to read."""
    if checkpoint.packing is not None:
        raise UnreadableError("transformers reads quantized matrices with further libraries only")
    if any(path.suffix == ".gguf" for path in {stored.path for stored in checkpoint.tensors.values()}):
        raise UnreadableError("transformers reads GGUF files with further libraries only")
    if checkpoint.adapter is not None and find_spec("peft") is None:
        raise UnreadableError("transformers reads adapters with peft, which is not installed")
    needed = ROOM * 4 * sum(_size(stored.shape) for stored in checkpoint.tensors.values())
    free = memory_budget(Path("/")).available
    if needed > free:
        raise UnreadableError(
            f"transformers would hold {checkpoint.name} in {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
