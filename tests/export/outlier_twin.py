"""A twin of the bundled model: the same function, with the outliers that large models have and small ones lack.

Four channels of every norm are 64 times as large, and what reads them 64 times as small; and in most layers one unit
of the feed-forward is huge at the first token of a sequence and almost always nothing elsewhere, as attention sinks
make it (https://arxiv.org/abs/2402.17762). Nothing reads that unit, so the function stays; whoever rounds it with the
others loses the others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ortserve.export.architecture import Linear
from ortserve.export.bundled import bundled_model
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import CheckpointWeights, final_states
from ortserve.export.sources.checkpoint import TOKENIZER_FILES, open_checkpoint
from ortserve.export.texts.proof_text import bundled_documents, document_tokens

Floats = NDArray[np.float32]
OUTLIER_CHANNELS = (7, 60, 133, 201)
FACTOR = 64.0
NUM_ADDED_UNITS = 64  # one of them is used: sizes stay multiples of the int4 blocks
MASSIVE = 4000.0  # the unit's value at a first token; others are around 1
GATE = 20.0  # of the unit at a first token, and its negative elsewhere: silu(-20) is nothing
FIRST_MASSIVE_LAYER = 1  # in layer 0 a first token looks like any other


def write_outlier_twin(folder: Path) -> Path:
    """The checkpoint in float32, its head apart from its embedding."""
    source = bundled_model()
    folder.mkdir(parents=True)
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    config |= {
        "tie_word_embeddings": False,
        "intermediate_size": config["intermediate_size"] + NUM_ADDED_UNITS,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: value.astype(np.float32) for name, value in load_file(source / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    for index, direction in _first_token_directions(config["num_hidden_layers"]):
        _add_unit(tensors, f"model.layers.{index}.mlp.", direction)
    _enlarge_channels(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _enlarge_channels(tensors: dict[str, Floats]) -> None:
    channels = list(OUTLIER_CHANNELS)
    readers = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
    for name, value in tensors.items():
        if "norm" in name:
            value[channels] *= FACTOR
        elif any(reader in name for reader in readers):
            value[:, channels] /= FACTOR


def _add_unit(tensors: dict[str, Floats], prefix: str, direction: Floats | None) -> None:
    hidden = tensors[f"{prefix}gate_proj.weight"].shape[1]
    for name in ("gate_proj", "up_proj"):
        added = np.zeros((NUM_ADDED_UNITS, hidden), np.float32)
        if direction is not None:
            added[0] = direction * (1.0 if name == "gate_proj" else MASSIVE / GATE / GATE)
        tensors[f"{prefix}{name}.weight"] = np.concatenate([tensors[f"{prefix}{name}.weight"], added])
    unread = np.zeros((hidden, NUM_ADDED_UNITS), np.float32)
    tensors[f"{prefix}down_proj.weight"] = np.concatenate([tensors[f"{prefix}down_proj.weight"], unread], axis=1)


def _first_token_directions(num_layers: int) -> Iterator[tuple[int, Floats | None]]:
    """For each layer what, multiplied by a token's input of the feed-forward, is GATE at first tokens, -GATE elsewhere.

    Least squares over pieces of text, so that any token may be a first one.
    """
    checkpoint = open_checkpoint(bundled_model())
    architecture = read_architecture(checkpoint)
    documents = bundled_documents("calibration")
    pieces = [text[start : start + 200] for text in documents for start in range(0, len(text), 200)]
    sequences = document_tokens(checkpoint, architecture.vocab_size, pieces, max_tokens=6000, max_length=24)
    inputs: dict[Linear, Floats] = {}

    class Watching(CheckpointWeights):
        def multiply(self, linear: Linear, value: Floats) -> Floats:
            inputs[linear] = value
            return super().multiply(linear, value)

    final_states(Watching(checkpoint), architecture, sequences)
    firsts = np.cumsum([0, *(len(sequence) for sequence in sequences[:-1])])
    for index, layer in enumerate(architecture.layers[:num_layers]):
        value = inputs[layer.mlps[0].gate].astype(np.float64)
        target = np.full(len(value), -GATE)
        target[firsts] = GATE
        weight = np.ones(len(value))
        weight[firsts] = len(value) / len(firsts)  # both sides count alike
        scaled = value * weight[:, None]
        fitted = np.linalg.solve(value.T @ scaled + 0.1 * np.eye(value.shape[1]), scaled.T @ target)
        yield index, fitted.astype(np.float32) if index >= FIRST_MASSIVE_LAYER else None
