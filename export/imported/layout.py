"""Finds the graph of a folder that another exporter made, and what its files say of the model. Reads no graph.

Two layouts: onnxruntime-genai's (`genai_config.json`) and the common one of optimum and transformers.js (`config.json`,
`past_key_values.N.key` and `present.N.key`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ortserve.export.errors import ExportError
from ortserve.export.sources.checkpoint import GENERATION, Checkpoint
from ortserve.export.sources.json_fields import JsonObject, read_json, read_optional_json

GENAI_CONFIG = "genai_config.json"
GRAPHS = ("model.onnx", "onnx/model.onnx")  # taken where there are others beside it
LAYER = "{layer}"
SEARCHED = ("temperature", "top_p", "top_k", "repetition_penalty", "do_sample")
# Parts of a model that take more than tokens, as genai_config.json calls them.
OTHER_PARTS = ("vision", "speech", "embedding", "encoder")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length", "max_seq_len")


@dataclass(frozen=True, slots=True)
class Names:
    """What the graph calls its inputs and outputs; of a layer, with `{layer}` for its number."""

    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    last_places: str = "seqlens_k"
    total_length: str = "total_sequence_length"
    logits: str = "logits"
    past_key: str = "past_key_values.{layer}.key"
    past_value: str = "past_key_values.{layer}.value"
    present_key: str = "present.{layer}.key"
    present_value: str = "present.{layer}.value"


@dataclass(frozen=True, slots=True)
class Layout:
    """One folder as it was found."""

    exporter: str  # "onnxruntime-genai" or "optimum's layout"
    graph: str  # file, below the folder
    names: Names
    checkpoint: Checkpoint  # its configuration and tokenizer; no tensors

    @property
    def max_context(self) -> int | None:
        """Tokens that the configuration says the model covers."""
        return first_integer(self.checkpoint.config, CONTEXT_KEYS)


def read_layout(folder: Path, *, graph: str | None = None, name: str | None = None) -> Layout:
    """Raises `ExportError` for a folder of neither layout, and for models that take more than tokens."""
    if not folder.is_dir():
        raise ExportError(f"{folder} is no folder: name one that holds an exported model")
    if (folder / GENAI_CONFIG).exists():
        return _read_genai(folder, graph, name)
    if not (folder / "config.json").exists():
        raise ExportError(
            f"{folder} has neither {GENAI_CONFIG} nor config.json: import takes folders of onnxruntime-genai's and of"
            " optimum's layout"
        )
    config = read_json(folder / "config.json")
    if config.get("is_encoder_decoder") is True:
        raise ExportError(f"{folder} holds an encoder and a decoder, and models of one decoder are served")
    return Layout(
        "optimum's layout",
        _find_graph(folder, graph),
        Names(),
        _checkpoint(folder, name, config, read_optional_json(folder / GENERATION)),
    )


def first_integer(fields: JsonObject, keys: Iterable[str]) -> int | None:
    """Of the first key that holds a positive whole number."""
    for key in keys:
        value = fields.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _read_genai(folder: Path, graph: str | None, name: str | None) -> Layout:
    path = folder / GENAI_CONFIG
    fields = read_json(path)
    model = _object(path, fields, "model")
    for part in OTHER_PARTS:
        if model.get(part):
            raise ExportError(f"{path}: the model has a part called {part}, and models that take only text are served")
    decoder = _object(path, model, "decoder")
    if decoder.get("pipeline"):
        raise ExportError(f"{path}: the decoder is a pipeline of several graphs, and one graph is served")
    if decoder.get("sliding_window"):
        raise ExportError(f"{path}: the decoder keeps a window of its tokens only, and whole rows are served")
    inputs, outputs = decoder.get("inputs") or {}, decoder.get("outputs") or {}
    config = {
        "model_type": model.get("type"),
        "hidden_size": decoder.get("hidden_size"),
        "num_attention_heads": decoder.get("num_attention_heads"),
        "num_key_value_heads": decoder.get("num_key_value_heads"),
        "head_dim": decoder.get("head_size"),
        "max_position_embeddings": model.get("context_length"),
        "eos_token_id": model.get("eos_token_id"),
        "bos_token_id": model.get("bos_token_id"),
    }
    search = fields.get("search") or {}
    generation = {key: search[key] for key in SEARCHED if key in search}
    named = graph or decoder.get("filename") or "model.onnx"
    return Layout(
        "onnxruntime-genai",
        _find_graph(folder, str(named)),
        _genai_names(path, inputs, outputs),
        _checkpoint(folder, name, config, generation),
    )


def _genai_names(path: Path, inputs: Any, outputs: Any) -> Names:
    """Those that are written, else the library's defaults, which are ours."""
    if not isinstance(inputs, dict) or not isinstance(outputs, dict):
        raise ExportError(f"{path}: inputs and outputs of the decoder are no objects")
    plain = Names()

    def named(fields: Mapping[str, Any], key: str, default: str) -> str:
        return str(fields.get(key) or default).replace("%d", LAYER)

    return Names(
        input_ids=named(inputs, "input_ids", plain.input_ids),
        attention_mask=named(inputs, "attention_mask", plain.attention_mask),
        position_ids=named(inputs, "position_ids", plain.position_ids),
        total_length=named(inputs, "total_sequence_length", plain.total_length),
        logits=named(outputs, "logits", plain.logits),
        past_key=named(inputs, "past_key_names", plain.past_key),
        past_value=named(inputs, "past_value_names", plain.past_value),
        present_key=named(outputs, "present_key_names", plain.present_key),
        present_value=named(outputs, "present_value_names", plain.present_value),
    )


def _find_graph(folder: Path, wanted: str | None) -> str:
    found = sorted(
        path.relative_to(folder).as_posix() for pattern in ("*.onnx", "onnx/*.onnx") for path in folder.glob(pattern)
    )
    if wanted is not None:
        if wanted not in found:
            raise ExportError(f"{folder} has no graph {wanted}: it has {', '.join(found) or 'none'}")
        return wanted
    if len(found) == 1:
        return found[0]
    for name in GRAPHS:
        if name in found:
            return name
    if not found:
        raise ExportError(f"{folder} has no .onnx file: export its checkpoint with ortserve export")
    raise ExportError(f"{folder} has several graphs: choose one with --graph: {', '.join(found)}")


def _checkpoint(folder: Path, name: str | None, config: JsonObject, generation: JsonObject) -> Checkpoint:
    own = folder.resolve().name
    return Checkpoint(
        folder=folder,
        name=name or own,
        source=own,
        config=config,
        generation_config=generation,
        tokenizer_config=read_optional_json(folder / "tokenizer_config.json"),
        tensors={},
    )


def _object(path: Path, fields: JsonObject, key: str) -> JsonObject:
    value = fields.get(key)
    if not isinstance(value, dict):
        raise ExportError(f"{path} has no {key}: it is not onnxruntime-genai's")
    return value
