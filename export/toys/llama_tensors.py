"""The tensors of a tied Llama checkpoint of a given shape, in file order. Knows names and sizes, no values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ortserve.export.sources.safetensors_file import NewTensor
from ortserve.export.toys.shapes import Shape

Role = Literal["embedding", "norm", "query", "key", "value", "attention_output", "gate", "up", "down"]
LAYER_TENSORS: tuple[tuple[Role, str], ...] = (
    ("norm", "input_layernorm.weight"),
    ("query", "self_attn.q_proj.weight"),
    ("key", "self_attn.k_proj.weight"),
    ("value", "self_attn.v_proj.weight"),
    ("attention_output", "self_attn.o_proj.weight"),
    ("norm", "post_attention_layernorm.weight"),
    ("gate", "mlp.gate_proj.weight"),
    ("up", "mlp.up_proj.weight"),
    ("down", "mlp.down_proj.weight"),
)


@dataclass(frozen=True, slots=True)
class LlamaTensor:
    """One tensor and what it does."""

    role: Role
    layer: int | None  # None outside the layers
    stored: NewTensor


def llama_tensors(shape: Shape, *, matrix_dtype: str, norm_dtype: str) -> Iterator[LlamaTensor]:
    """Every tensor of the checkpoint; dtypes are keys of `safetensors_file.DTYPES`."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    query, key_value = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes: dict[Role, tuple[int, ...]] = {
        "embedding": (shape.vocab_size, hidden),
        "norm": (hidden,),
        "query": (query, hidden),
        "key": (key_value, hidden),
        "value": (key_value, hidden),
        "attention_output": (hidden, query),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }

    def tensor(role: Role, name: str, layer: int | None) -> LlamaTensor:
        dtype = norm_dtype if role == "norm" else matrix_dtype
        return LlamaTensor(role, layer, NewTensor(name, dtype, sizes[role]))

    yield tensor("embedding", "model.embed_tokens.weight", None)
    for layer in range(shape.num_layers):
        for role, name in LAYER_TENSORS:
            yield tensor(role, f"model.layers.{layer}.{name}", layer)
    yield tensor("norm", "model.norm.weight", None)
