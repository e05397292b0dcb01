"""A Llama decoder in plain torch and its checkpoint files; knows nothing of text, training or serving."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model; the head size and the vocabulary are shared by a model and its draft."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int = 2048
    head_size: int = 64
    positions: int = 2048
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5


POCKET = Shape(hidden=256, layers=6, heads=4, kv_heads=2, feed_forward=704)
DRAFT = Shape(hidden=128, layers=2, heads=2, kv_heads=1, feed_forward=352)


class Cache:
    """Keys and values of the positions seen so far, for greedy decoding of one batch."""

    def __init__(self, shape: Shape, rows: int, capacity: int, like: Tensor) -> None:
        size = (
            shape.layers,
            rows,
            shape.kv_heads,
            capacity,
            shape.head_size,
        )  # [layers, rows, kv heads, positions, head]
        self.keys, self.values = like.new_zeros(size), like.new_zeros(size)
        self.length = 0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in the rotate-half convention; `x` is [rows, heads, positions, head]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.shape, self.layer = shape, layer
        query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.q_proj = nn.Linear(shape.hidden, query, bias=False)
        self.k_proj = nn.Linear(shape.hidden, key, bias=False)
        self.v_proj = nn.Linear(shape.hidden, key, bias=False)
        self.o_proj = nn.Linear(query, shape.hidden, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: BlockMask | Tensor, cache: Cache | None) -> Tensor:
        rows, length, _ = x.shape
        size = self.shape.head_size

        def split(projected: Tensor) -> Tensor:
            return projected.view(rows, length, -1, size).transpose(1, 2)

        query, key = (rotate(split(project(x)), *rope).to(x.dtype) for project in (self.q_proj, self.k_proj))
        value = split(self.v_proj(x))
        query, key = query.to(value.dtype), key.to(value.dtype)
        if cache is not None:
            end = cache.length + length
            cache.keys[self.layer, :, :, cache.length : end] = key
            cache.values[self.layer, :, :, cache.length : end] = value
            key, value = cache.keys[self.layer, :, :, :end], cache.values[self.layer, :, :, :end]
        if isinstance(mask, BlockMask):
            mixed = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return cast(Tensor, self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1)))


class FeedForward(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    """Attention and feed-forward with their norms."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.self_attn = Attention(shape, layer)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: BlockMask | Tensor, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    """Embedding, layers and the last norm; the names match the published Llama checkpoints."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape, layer) for layer in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)


class Llama(nn.Module):
    """Token ids in, logits out; the embedding is also the output matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(
                    parameter,
                    std=0.02 if parameter is self.model.embed_tokens.weight else 0.5 * parameter.shape[1] ** -0.5,
                )
        frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: BlockMask | Tensor, cache: Cache | None = None
    ) -> Tensor:
        """`tokens` and `positions` are [rows, length]; returns [rows, length, vocabulary]."""
        angles = positions[:, None, :, None].float() * cast(Tensor, self.frequencies)
        angles = torch.cat((angles, angles), dim=-1)  # [rows, 1, length, head]
        rope = (angles.cos(), angles.sin())
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, rope, mask, cache)
        if cache is not None:
            cache.length += tokens.shape[1]
        return functional.linear(self.model.norm(x), self.model.embed_tokens.weight)


def configuration(shape: Shape, eos: int, pad: int) -> dict[str, object]:
    """The body of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "intermediate_size": shape.feed_forward,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.norm_epsilon,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def save_model(model: Llama, folder: Path, eos: int, pad: int, extra: dict[str, object] | None = None) -> None:
    """Write config.json, generation_config.json and model.safetensors (bf16)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({**configuration(model.shape, eos, pad), **(extra or {})}, indent=2) + "\n"
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": False, "eos_token_id": [eos], "pad_token_id": pad}, indent=2) + "\n"
    )
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library writes a file that only its owner may read


def load_model(folder: Path) -> Llama:
    """Read a checkpoint written by `save_model`, as float32."""
    body = json.loads((folder / "config.json").read_text())
    shape = Shape(
        body["hidden_size"],
        body["num_hidden_layers"],
        body["num_attention_heads"],
        body["num_key_value_heads"],
        body["intermediate_size"],
        body["vocab_size"],
        body["head_dim"],
        body["max_position_embeddings"],
        body["rope_theta"],
        body["rms_norm_eps"],
    )
    model = Llama(shape)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model
