"""What a decoder is made of, as export understands it: sizes and tensor names. Knows no precision and no graph."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864) and how its frequencies are stretched."""

    theta: float
    rotary_dim: int  # leading components of a head that rotate; even
    kind: str = "default"  # default, linear, llama3
    factor: float = 1.0
    low_frequency_factor: float = 1.0  # llama3 only
    high_frequency_factor: float = 4.0  # llama3 only
    original_context: int = 8192  # llama3 only


@dataclass(frozen=True, slots=True)
class Linear:
    """One matrix product: checkpoint tensors `[rows, columns]` stacked by rows, and their biases."""

    weights: tuple[str, ...]
    biases: tuple[str, ...]  # empty, or one `[rows]` tensor per weight


@dataclass(frozen=True, slots=True)
class Layer:
    """Tensor names of one pre-norm decoder layer."""

    attention_norm: str
    qkv: Linear  # query, key, value stacked
    attention_output: Linear
    mlp_norm: str
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder: RMS norms, grouped-query attention with rotary positions, gated SiLU MLP."""

    family: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding
    max_context: int
    norm_epsilon: float
    rope: Rope
    sliding_window: int | None  # tokens a query may look back on, itself included
    embedding: str
    layers: tuple[Layer, ...]
    final_norm: str
    lm_head: str  # equals `embedding` when tied

    @property
    def tied(self) -> bool:
        """The embedding is also the output matrix."""
        return self.lm_head == self.embedding
