"""Folders as other exporters write them, around the synthetic model: real layouts without their libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from ortserve.runtime.padded_graph import Attention
from ortserve.runtime.testing import VOCAB_SIZE, write_padded_synthetic_model
from tests.export.checkpoints import write_json

CONFIG = {
    "model_type": "synthetic",
    "hidden_size": 8,
    "num_attention_heads": 1,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
}
GENAI_CONFIG: dict[str, Any] = {
    "model": {
        "type": "synthetic",
        "context_length": 128,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": [0, 2],
        "decoder": {
            "filename": "decoder.onnx",
            "head_size": 8,
            "hidden_size": 8,
            "num_attention_heads": 1,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "session_options": {"provider_options": []},
            "inputs": {"input_ids": "ids", "past_key_names": "past_%d_k", "past_value_names": "past_%d_v"},
            "outputs": {"present_key_names": "present_%d_k", "present_value_names": "present_%d_v"},
        },
    },
    "search": {"do_sample": True, "temperature": 0.6, "top_k": 20, "max_length": 128},
}


def write_common(folder: Path, *, graph: str = "model.onnx", attention: Attention = "concatenated") -> Path:
    """The layout of optimum and transformers.js."""
    names = {"tokens": "input_ids", "mask": "attention_mask", "places": "position_ids", "wide_logits": "logits"}
    names |= {"logits": "flat_logits", "input_ids": "flat_ids", "position_ids": "flat_places"}
    for layer in range(2):
        for part in ("key", "value"):
            names[f"past.{layer}.{part}"] = f"past_key_values.{layer}.{part}"
    write_graph(folder / graph, names, attention)
    write_json(folder / "config.json", CONFIG)
    return folder


def write_genai(folder: Path, *, attention: Attention = "grouped") -> Path:
    """onnxruntime-genai's layout, with names of its own."""
    names = {"tokens": "ids", "mask": "attention_mask", "places": "position_ids", "wide_logits": "logits"}
    names |= {"logits": "flat_logits", "ids": "row_of_ids", "position_ids": "flat_places"}
    for layer in range(2):
        for part in ("key", "value"):
            names[f"past.{layer}.{part}"] = f"past_{layer}_{part[0]}"
            names[f"present.{layer}.{part}"] = f"present_{layer}_{part[0]}"
    write_graph(folder / "decoder.onnx", names, attention)
    write_json(folder / "genai_config.json", GENAI_CONFIG)
    return folder


def write_graph(path: Path, names: dict[str, str], attention: Attention) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / "scratch"
    write_padded_synthetic_model(scratch, attention)
    model = onnx.load(str(scratch / "model.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    onnx.save(model, str(path))
    for file in scratch.iterdir():
        file.unlink()
    scratch.rmdir()
