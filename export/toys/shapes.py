"""Sizes of well-known decoders, for checkpoints made to measure speed. Knows no weights and no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ortserve.export.errors import ExportError


@dataclass(frozen=True, slots=True)
class Shape:
    """What a Llama `config.json` says about sizes and positions."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_tokens: int  # of the tokenizer; embeddings are often padded beyond it
    max_context: int
    rope_theta: float
    norm_epsilon: float
    rope_scaling: Mapping[str, Any] | None = None

    @property
    def num_parameters(self) -> int:
        """With a tied embedding."""
        attention = 2 * self.hidden_size * (self.num_heads + self.num_kv_heads) * self.head_dim
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.vocab_size * self.hidden_size + self.num_layers * layer + self.hidden_size


SHAPES: Mapping[str, Shape] = {
    # Qwen/Qwen2.5-0.5B as a Llama: without its attention biases, which cost nothing
    "qwen2.5-0.5b": Shape(
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=151936,
        num_tokens=151665,
        max_context=32768,
        rope_theta=1_000_000.0,
        norm_epsilon=1e-6,
    ),
    "llama-3.2-1b": Shape(
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        vocab_size=128256,
        num_tokens=128256,
        max_context=131072,
        rope_theta=500_000.0,
        norm_epsilon=1e-5,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "llama-3.1-8b": Shape(
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128256,
        num_tokens=128256,
        max_context=131072,
        rope_theta=500_000.0,
        norm_epsilon=1e-5,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    # seconds instead of minutes: for tests and for trying the commands
    "tiny": Shape(
        hidden_size=64,
        intermediate_size=160,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=320,
        num_tokens=300,
        max_context=512,
        rope_theta=10_000.0,
        norm_epsilon=1e-5,
    ),
}


def find_shape(name: str) -> Shape:
    """Raises `ExportError` naming the known shapes."""
    if name not in SHAPES:
        raise ExportError(f"the shape {name!r} is unknown: choose {', '.join(SHAPES)}")
    return SHAPES[name]


def llama_config(shape: Shape, *, eos_token_id: int | None) -> dict[str, Any]:
    """The content of `config.json` for a tied Llama without biases."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_context,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None if shape.rope_scaling is None else dict(shape.rope_scaling),
        "rms_norm_eps": shape.norm_epsilon,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "torch_dtype": "bfloat16",
    }
