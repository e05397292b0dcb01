"""Starts `worker.py` in optimum's environment and waits for it. Knows no graph."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ortserve.export.errors import ExportError
from ortserve.export.optimum.environment import default_environments, optimum_python
from ortserve.export.optimum.transformers4 import readable_copy

WORKER = Path(__file__).with_name("worker.py")
DONE = "done.json"
Work = Literal["embeddings", "rerank", "decoder", "logits"]


def run_worker(
    checkpoint: Path, folder: Path, work: Work, *, progress: bool, **asked: Sequence[Any] | str
) -> Mapping[str, Any]:
    """What it says when it is done; its files are in `folder`, which it makes below one that exists.

    `asked` is the rest of the request. Raises `ExportError` with the last line of what went wrong, and where there is
    no environment.
    """
    python = optimum_python(default_environments(), progress=progress)
    readable = readable_copy(checkpoint, folder.parent / f"{folder.name}-checkpoint")
    request = folder.parent / f"{folder.name}-request.json"
    fields = {"checkpoint": str(readable), "folder": str(folder), "task": work, **asked}
    request.write_text(json.dumps(fields), encoding="utf-8")
    done = _run(python, request)
    if done.returncode != 0 or not (folder / DONE).exists():
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        failed = "transformers cannot compute" if work == "logits" else "optimum cannot export"
        raise ExportError(f"{failed} {checkpoint.name} ({reason.strip()[:300]})")
    return read_done(folder)


def _run(python: Path, request: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), str(WORKER), str(request)], capture_output=True, text=True, check=False)  # noqa: S603


def read_done(folder: Path) -> Mapping[str, Any]:
    """What the worker said when it had written `folder`: `libraries`, versions by name, and more."""
    facts: Mapping[str, Any] = json.loads((folder / DONE).read_text(encoding="utf-8"))
    return facts


def read_logits(folder: Path) -> list[NDArray[np.float32]]:
    """Those of the task `logits`, text by text, each `[tokens, vocabulary]`."""
    with np.load(folder / "logits.npz") as stored:
        return [stored[str(place)] for place in range(len(stored.files))]
