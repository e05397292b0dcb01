"""The reference of what optimum exported: transformers' own logits, computed in optimum's environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ortserve.export.errors import ExportError
from ortserve.export.float_reference.forward import Floats, Watch
from ortserve.export.optimum.environment import optimum_requirements
from ortserve.export.optimum.process import read_logits, run_worker
from ortserve.export.proof.references import Reference
from ortserve.runtime.manifest import Manifest


def optimum_reference(checkpoint: Path, manifest: Manifest, *, progress: bool) -> Reference:
    """Starts no process before logits are asked for; `libraries` are known after that.

    They raise `ExportError` when transformers cannot read the checkpoint, or it is another model's.
    """
    libraries: dict[str, str] = {}

    def compute(texts: Sequence[Sequence[int]], _: Watch | None) -> list[Floats]:
        with TemporaryDirectory(prefix="ortserve-optimum-") as scratch:
            folder = Path(scratch) / "logits"
            asked = [[int(token) for token in text] for text in texts]
            done = run_worker(checkpoint, folder, "logits", texts=asked, progress=progress)
            logits = read_logits(folder)
        libraries.update(done["libraries"])
        for rows in logits:
            if rows.shape[1] != manifest.vocab_size:
                raise ExportError(
                    f"{manifest.name} was not exported from this checkpoint: it gives {manifest.vocab_size} logits, the"
                    f" checkpoint {rows.shape[1]}"
                )
        return logits

    pins = dict(requirement.split("==", 1) for requirement in optimum_requirements())
    versions = f"transformers {pins['transformers']} on torch {pins['torch']}"
    return Reference(f"{versions} in optimum's environment, float32, eager attention", compute, libraries)
