"""Runs in optimum's environment, never in ours: exports the graph and computes what the reference computes.

  python worker.py REQUEST.json

The request names a checkpoint, a task, a folder to write to, and what the proof computes. Written are

- of `embeddings` and `rerank`: `model.onnx`, `reference.npy` (float32: embeddings, or scores of pairs) and `dense.npz`
  (weights of Dense modules),
- of `decoder`: the graph and its configuration files as optimum writes them,
- of `logits`: `logits.npz`, float32 `[tokens, vocabulary]` for every text of token ids, by its place,

and in the end `done.json`. Imports nothing of ortserve: the environment does not have it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("optimum", "optimum-onnx", "transformers", "sentence-transformers", "torch", "onnx", "onnxruntime")
EXPORTS = {
    "embeddings": "feature-extraction",
    "rerank": "text-classification",
    "decoder": "text-generation-with-past",
}


def main() -> int:
    """Do what the request says; a traceback and a status of 1 tell of any failure."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    checkpoint, folder, task = request["checkpoint"], Path(request["folder"]), request["task"]
    folder.mkdir(parents=True, exist_ok=True)
    modules: list[dict[str, Any]] = []
    if task in EXPORTS:
        _export(checkpoint, folder, task)
    if task == "embeddings":
        modules = _embed(checkpoint, folder, request["texts"])
    elif task == "rerank":
        _score(checkpoint, folder, request["pairs"])
    elif task == "logits":
        _compute_logits(checkpoint, folder, request["texts"])
    done = {"libraries": {name: version(name) for name in LIBRARIES}, "modules": modules}
    (folder / "done.json").write_text(json.dumps(done), encoding="utf-8")
    return 0


def _export(checkpoint: str, folder: Path, task: str) -> None:
    from optimum.exporters.onnx import main_export

    main_export(
        checkpoint,
        output=folder,
        task=EXPORTS[task],
        library_name="transformers",  # the plain encoder: ortserve adds pooling and what follows
        framework="pt",
        dtype="fp32",
        do_validation=False,  # ortserve compares with the reference itself
        local_files_only=True,
    )


def _compute_logits(checkpoint: str, folder: Path, texts: list[list[int]]) -> None:
    """Each text alone, in one call without a cache, in float32."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([text]), use_cache=False).logits[0].numpy() for text in texts]
    np.savez(folder / "logits.npz", **{str(place): row.astype(np.float32) for place, row in enumerate(rows)})


def _embed(checkpoint: str, folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    """Each text alone, without padding; and what the modules are."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(checkpoint, device="cpu")
    rows = [model.encode(text, batch_size=1, show_progress_bar=False, convert_to_numpy=True) for text in texts]
    np.save(folder / "reference.npy", np.asarray(rows, np.float32))
    modules: list[dict[str, Any]] = []
    weights: dict[str, Any] = {}
    for module in model:
        name = type(module).__name__
        facts: dict[str, Any] = {"type": name}
        if name == "Dense":
            place = str(len(modules))
            weights[f"{place}.weight"] = module.linear.weight.detach().numpy()
            if module.linear.bias is not None:
                weights[f"{place}.bias"] = module.linear.bias.detach().numpy()
            facts |= {"weights": place, "activation": type(module.activation_function).__name__}
        modules.append(facts)
    np.savez(folder / "dense.npz", **weights)
    return modules


def _score(checkpoint: str, folder: Path, pairs: list[list[str]]) -> None:
    """Each pair alone."""
    import numpy as np
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(checkpoint, device="cpu")
    scores = [float(np.ravel(model.predict([tuple(pair)], show_progress_bar=False))[0]) for pair in pairs]
    np.save(folder / "reference.npy", np.asarray(scores, np.float32)[:, None])


if __name__ == "__main__":
    sys.exit(main())
