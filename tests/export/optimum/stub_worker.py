"""Stands for `export/optimum/worker.py` where there is no torch: gives what optimum once wrote of a tiny GPT-2.

Its logits are the graph's own in one call, so that a proof against them says nothing of optimum; `stub` in config.json
asks for wrong ones.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np

from ortserve.export.imported.layout import Names
from ortserve.export.imported.outside import read_outside
from ortserve.export.proof.padded_run import open_session, whole_logits

GPT2 = Path(__file__).parents[1] / "imported" / "gpt2-optimum"
LIBRARIES = {
    "optimum": "2.1.0",
    "optimum-onnx": "0.1.0",
    "transformers": "4.57.6",
    "torch": "2.13.0+cpu",
    "onnx": "1.21.0",
}


def run(_python: Path, path: Path) -> CompletedProcess[str]:
    """In place of a process."""
    request = json.loads(path.read_text())
    folder = Path(request["folder"])
    wrong = json.loads((Path(request["checkpoint"]) / "config.json").read_text()).get("stub")
    if request["task"] == "decoder":
        if wrong == "fails":
            return CompletedProcess([], 1, "", "Traceback\nValueError: no ONNX configuration for this architecture\n")
        shutil.copytree(GPT2, folder)
    else:
        folder.mkdir()
        outside = read_outside(GPT2 / "model.onnx", Names())
        session = open_session(GPT2 / "model.onnx")
        logits = [whole_logits(session, outside.padded, text, cache_shape=(2, 2, 8)) for text in request["texts"]]
        if wrong == "position":
            logits = [np.roll(rows, 1, axis=0) for rows in logits]
        if wrong == "vocabulary":
            logits = [rows[:, :-1] for rows in logits]
        stored: dict[str, Any] = {str(place): rows for place, rows in enumerate(logits)}
        np.savez(folder / "logits.npz", **stored)
    (folder / "done.json").write_text(json.dumps({"libraries": LIBRARIES, "modules": []}))
    return CompletedProcess([], 0, "", "")
