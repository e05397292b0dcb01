"""Tiny random checkpoints with every variation the exporter knows, written with the safetensors library itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ortserve.export.sources.checkpoint import RANDOM_WEIGHTS

DTYPES: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True, slots=True)
class Tiny:
    """A checkpoint of a few thousand parameters; `config` overrides fields of config.json."""

    architecture: str = "LlamaForCausalLM"
    hidden_size: int = 32
    intermediate_size: int = 48
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    vocab_size: int = 72
    max_context: int = 96
    rope_theta: float = 100.0  # low: every pair turns visibly within a few positions
    tied: bool = True
    biases: bool = False
    dtype: str = "F32"
    num_shards: int = 1
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def config_json(self) -> dict[str, Any]:
        return {
            "architectures": [self.architecture],
            RANDOM_WEIGHTS: True,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_context,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.biases,
            "mlp_bias": self.biases,
            **self.config,
        }

    def tensors(self) -> dict[str, NDArray[Any]]:
        generator = np.random.default_rng(self.seed)
        shapes = self._shapes()
        values: dict[str, NDArray[Any]] = {}
        for name, shape in shapes.items():
            noise = generator.standard_normal(shape)
            if "norm" in name:
                value = 1 + 0.2 * noise
            elif name.endswith("bias"):
                value = 0.5 * noise
            else:
                value = noise * (2.0 if "embed" in name or "lm_head" in name else 1.0) / np.sqrt(shape[-1])
            values[name] = value.astype(DTYPES[self.dtype])
        return values

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for index in range(self.num_layers):
            prefix = f"model.layers.{index}."
            linears = {
                "self_attn.q_proj": (query, hidden),
                "self_attn.k_proj": (key_value, hidden),
                "self_attn.v_proj": (key_value, hidden),
                "self_attn.o_proj": (hidden, query),
                "mlp.gate_proj": (inner, hidden),
                "mlp.up_proj": (inner, hidden),
                "mlp.down_proj": (hidden, inner),
            }
            for name, shape in linears.items():
                shapes[f"{prefix}{name}.weight"] = shape
                if self.biases:
                    shapes[f"{prefix}{name}.bias"] = shape[:1]
            shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
            shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes


def write_checkpoint(folder: Path, tiny: Tiny | None = None) -> Path:
    tiny = tiny or Tiny()
    folder.mkdir(parents=True)
    write_json(folder / "config.json", tiny.config_json())
    tensors = tiny.tensors()
    if tiny.num_shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(tiny.num_shards):
        file = f"model-{shard + 1:05}-of-{tiny.num_shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard :: tiny.num_shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def write_tokenizer(folder: Path, words: list[str], config: Mapping[str, Any] | None = None) -> None:
    """A tokenizer whose ids are the places in `words`; unknown characters are dropped."""
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def random_sequences(vocab_size: int, lengths: tuple[int, ...], seed: int = 3) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths]
