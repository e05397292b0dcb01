"""Says in the terms of a Hugging Face checkpoint what a GGUF file holds: config.json and tensor names. Knows no bytes.

Source: llama.cpp `convert_hf_to_gguf.py` and `gguf-py/gguf/constants.py`, read backwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ortserve.export.errors import ExportError
from ortserve.export.gguf.file import GgufFile
from ortserve.export.gguf.tensor import GgufTensor

ARCHITECTURES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
OUTER: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"  # what Llama 3 divides frequencies by
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3_FACTORS = (8.0, 32.0)  # of the published models


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """config.json. Raises `ExportError` for architectures, experts and rope settings that are not read."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ExportError(f"{file.path}: GGUF architecture {architecture!r} is not supported: export reads {known}")

    def field(key: str, default: Any = None) -> Any:
        return file.metadata.get(f"{architecture}.{key}", default)

    if field("expert_count"):
        raise ExportError(f"{file.path} has experts, which are exported from safetensors only")
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": field("attention.head_count"),
        "num_key_value_heads": field("attention.head_count_kv"),
        "head_dim": field("attention.key_length") or _head_dim(file, architecture),
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "rope_theta": field("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(file, architecture),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": architecture == "llama" and "blk.0.attn_q.bias" in file.tensors,
    }
    missing = [key for key, value in config.items() if value is None and key != "rope_scaling"]
    if missing:
        raise ExportError(f"{file.path} does not say its {missing[0]}: its metadata is incomplete")
    turned = field("rope.dimension_count", config["head_dim"])
    if turned != config["head_dim"]:
        raise ExportError(f"{file.path} rotates {turned} of {config['head_dim']} components: export reads whole heads")
    if architecture == "llama" and field("attention.sliding_window"):
        config |= {"architectures": ["MistralForCausalLM"], "sliding_window": field("attention.sliding_window")}
    return config


def gguf_tensors(file: GgufFile) -> dict[str, GgufTensor]:
    """The tensors by their names in a checkpoint. Raises `ExportError` naming one that no such name is known for.

    Llama's queries and keys are stored for rotation of neighbours; they are read back in the order of halves.
    """
    is_llama = file.metadata["general.architecture"] == "llama"
    found: dict[str, GgufTensor] = {}
    for name, stored in file.tensors.items():
        if name == ROPE_FACTORS:
            continue
        tensor = stored
        parts = re.fullmatch(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)", name)
        if name in OUTER:
            found[OUTER[name]] = tensor
        elif parts is not None and parts[2] in IN_LAYER:
            if is_llama and parts[2] in ("attn_q", "attn_k"):
                tensor = _interleaved(file, tensor, "head_count" if parts[2] == "attn_q" else "head_count_kv")
            found[f"model.layers.{int(parts[1])}.{IN_LAYER[parts[2]]}.{parts[3]}"] = tensor
        else:
            raise ExportError(f"{file.path}: the tensor {name} is not known: export cannot tell what it does")
    return found


def _interleaved(file: GgufFile, tensor: GgufTensor, key: str) -> GgufTensor:
    num_heads = file.metadata.get(f"llama.attention.{key}")
    if not isinstance(num_heads, int) or num_heads < 1 or tensor.shape[0] % (2 * num_heads):
        raise ExportError(f"{file.path}: llama.attention.{key} {num_heads!r} does not divide {tensor.shape[0]} rows")
    return replace(tensor, interleaved_heads=num_heads)


def _head_dim(file: GgufFile, architecture: str) -> int | None:
    hidden = file.metadata.get(f"{architecture}.embedding_length")
    heads = file.metadata.get(f"{architecture}.attention.head_count")
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1:
        return None
    return hidden // heads


def _rope_scaling(file: GgufFile, architecture: str) -> dict[str, Any] | None:
    prefix = f"{architecture}.rope.scaling."
    kind = file.metadata.get(f"{prefix}type", "none")
    if ROPE_FACTORS in file.tensors:
        return _llama3(file, architecture)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ExportError(f"{file.path}: rope scaling {kind!r} is not supported: export reads linear and yarn")
    settings = {"rope_type": kind, "factor": file.metadata.get(f"{prefix}factor")}
    original = file.metadata.get(f"{prefix}original_context_length")
    return settings if original is None else {**settings, "original_max_position_embeddings": original}


def _llama3(file: GgufFile, architecture: str) -> dict[str, Any]:
    """The settings whose factors the file holds: it does not hold the settings."""
    from ortserve.export.families.rope_settings import read_rope
    from ortserve.export.graph.rope import inverse_frequencies

    stored = file.tensors[ROPE_FACTORS].read().reshape(-1)
    theta = file.metadata.get(f"{architecture}.rope.freq_base", 10000.0)
    plain = read_rope({"rope_theta": theta}, head_dim=2 * len(stored), max_context=1 << 17)
    for factor in LLAMA3_FACTORS:
        settings = {"rope_type": "llama3", "factor": factor, **LLAMA3}
        config = {"rope_theta": theta, "rope_scaling": settings}
        rope = read_rope(config, head_dim=2 * len(stored), max_context=1 << 17)
        if np.allclose(inverse_frequencies(plain) / inverse_frequencies(rope), stored, rtol=1e-4):
            return settings
    raise ExportError(f"{file.path}: {ROPE_FACTORS} is not Llama 3's for factor 8 or 32, which export reads")
