"""Qwen2 and 2.5, Qwen3: what they do otherwise than Llama. Knows no graph.

Source: transformers `configuration_qwen2.py`, `modeling_qwen2.py`, `configuration_qwen3.py`, `modeling_qwen3.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ortserve.export.architecture import Architecture, Layer, QueryKeyNorm
from ortserve.export.families.decoder_config import (
    SILU_NAMES,
    Sizes,
    check_activation,
    describe,
    layer_kinds,
    linear,
    llama_layer,
    norm,
    plain_rope,
    read_sizes,
    unchanged,
    window_of,
)
from ortserve.export.families.rope_settings import LayerKind
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.json_fields import JsonObject, flag

MAX_CONTEXT = 32768  # where a configuration is silent
WINDOW_LAYERS = 28  # `max_window_layers`, likewise


def read_qwen2(checkpoint: Checkpoint) -> Architecture:
    """Biases of queries, keys and values, none elsewhere; upper layers may slide."""

    def with_biases(layer: Layer, index: int) -> Layer:
        prefix = f"model.layers.{index}.self_attn."
        attention = replace(
            layer.attention,
            qkv=linear(prefix, "q_proj", "k_proj", "v_proj", bias=True),
            output=linear(prefix, "o_proj"),
        )
        return replace(layer, attention=attention)

    return _read(checkpoint, "qwen2", read_sizes(checkpoint.config, max_context=MAX_CONTEXT), with_biases)


def read_qwen3(checkpoint: Checkpoint) -> Architecture:
    """Norms of every head's query and key before they rotate; upper layers may slide."""
    return read_qwen3_layers(checkpoint, "qwen3", unchanged)


def read_qwen3_layers(checkpoint: Checkpoint, family: str, differ: Callable[[Layer, int], Layer]) -> Architecture:
    """Qwen3, with layers that a family changes by their index."""
    sizes = read_sizes(checkpoint.config, head_dim=128, max_context=MAX_CONTEXT)

    def with_norms(layer: Layer, index: int) -> Layer:
        query, key = (
            norm(sizes, f"model.layers.{index}.self_attn.{name}.weight", width=sizes.head_dim)
            for name in ("q_norm", "k_norm")
        )
        attention = replace(layer.attention, norm=QueryKeyNorm(query, key))
        return differ(replace(layer, attention=attention), index)

    return _read(checkpoint, family, sizes, with_norms)


def _read(checkpoint: Checkpoint, family: str, sizes: Sizes, differ: Callable[[Layer, int], Layer]) -> Architecture:
    config = checkpoint.config
    check_activation(config, family, known=SILU_NAMES)
    rope, kinds = plain_rope(config, sizes), _kinds(config, sizes)

    def layer(index: int) -> Layer:
        plain = llama_layer(config, sizes, index, rope)
        attention = replace(plain.attention, window=window_of(config, kinds[index]))
        return differ(replace(plain, attention=attention), index)

    return describe(checkpoint, family, sizes, layer, tied=False)


def _kinds(config: JsonObject, sizes: Sizes) -> tuple[LayerKind, ...]:
    """Without `use_sliding_window` the window that is written does not count."""
    slides = flag(config, "use_sliding_window", False) and config.get("sliding_window") is not None
    first = config.get("max_window_layers", WINDOW_LAYERS)  # may be 0: all layers slide

    def kind(index: int) -> LayerKind:
        return "sliding_attention" if slides and isinstance(first, int) and index >= first else "full_attention"

    return layer_kinds(config, sizes, kind)
