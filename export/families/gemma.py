"""Gemma 2 and the text models of Gemma 3: scaled embeddings, four norms a layer, two kinds of layers. Knows no graph.

Source: transformers `configuration_gemma2.py`, `modeling_gemma2.py`, `configuration_gemma3.py`, `modeling_gemma3.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ortserve.export.architecture import Architecture, Attention, Layer, QueryKeyNorm, Rope
from ortserve.export.errors import ExportError
from ortserve.export.families.decoder_config import (
    EMBEDDING,
    GELU_TANH_NAMES,
    Sizes,
    check_activation,
    describe,
    layer_kinds,
    llama_attention,
    llama_mlp,
    norm,
    plain_rope,
    read_sizes,
    window_of,
)
from ortserve.export.families.rope_settings import LayerKind, read_rope
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.json_fields import JsonObject, flag, integer, number

NORM_OFFSET = 1.0  # weights are stored around 0
HEAD_DIM = 256  # where a configuration is silent
SLIDING_WINDOW = 4096
GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0


def read_gemma2(checkpoint: Checkpoint) -> Architecture:
    """Every second layer slides; scores and logits are bounded by a tanh."""
    config = {
        "sliding_window": SLIDING_WINDOW,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        **checkpoint.config,
    }
    sizes = read_sizes(config, head_dim=HEAD_DIM, max_context=8192)
    rope = plain_rope(config, sizes)
    kinds = layer_kinds(config, sizes, lambda index: "full_attention" if index % 2 else "sliding_attention")

    def attention(index: int) -> Attention:
        return _attention(config, sizes, index, kinds[index], rope)

    return _describe(checkpoint, config, "gemma2", sizes, attention)


def read_gemma3(checkpoint: Checkpoint) -> Architecture:
    """Five of six layers slide and turn by a base of their own; heads are normed before they rotate."""
    config = {"sliding_window": SLIDING_WINDOW, **checkpoint.config}
    sizes = read_sizes(config, head_dim=HEAD_DIM, max_context=131072)
    pattern = integer(config, "sliding_window_pattern", 6)
    kinds = layer_kinds(config, sizes, lambda index: "sliding_attention" if (index + 1) % pattern else "full_attention")
    ropes = {kind: _gemma3_rope(config, sizes, kind) for kind in kinds}

    def attention(index: int) -> Attention:
        prefix = f"model.layers.{index}.self_attn."
        query, key = (
            norm(sizes, f"{prefix}{name}.weight", width=sizes.head_dim, offset=NORM_OFFSET)
            for name in ("q_norm", "k_norm")
        )
        plain = _attention(config, sizes, index, kinds[index], ropes[kinds[index]])
        return replace(plain, norm=QueryKeyNorm(query, key))

    return _describe(checkpoint, config, "gemma3", sizes, attention)


def _gemma3_rope(config: JsonObject, sizes: Sizes, kind: LayerKind) -> Rope:
    """transformers 4 scales the layers that see everything and names the others' base apart."""
    default = GLOBAL_THETA if kind == "full_attention" else LOCAL_THETA
    if kind == "sliding_attention" and config.get("rope_parameters") is None:
        config = {"rope_theta": config.get("rope_local_base_freq")}
    return read_rope(
        config, head_dim=sizes.head_dim, max_context=sizes.max_context, default_theta=default, layer_kind=kind
    )


def _attention(config: JsonObject, sizes: Sizes, index: int, kind: LayerKind, rope: Rope) -> Attention:
    return replace(
        llama_attention(config, sizes, index, rope),
        scale=number(config, "query_pre_attn_scalar", 256.0) ** -0.5,
        window=window_of(config, kind),
        softcap=_softcap(config, "attn_logit_softcapping"),
    )


def _describe(
    checkpoint: Checkpoint, config: JsonObject, family: str, sizes: Sizes, attention: Callable[[int], Attention]
) -> Architecture:
    check_activation(config, family, known=GELU_TANH_NAMES, key="hidden_activation")
    if flag(config, "use_bidirectional_attention", False):
        raise ExportError(
            f"config.json: use_bidirectional_attention is not supported: {family} export decodes causally"
        )

    def layer(index: int) -> Layer:
        before, after, before_mlp, after_mlp = (
            norm(sizes, f"model.layers.{index}.{name}.weight", offset=NORM_OFFSET)
            for name in (
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            )
        )
        mlp = llama_mlp(config, index, "gelu_tanh")
        return Layer(before, attention(index), after, before_mlp, mlp, after_mlp)

    return describe(
        checkpoint,
        family,
        sizes,
        layer,
        tied=True,
        norm_offset=NORM_OFFSET,
        embedding_scale=_embedding_scale(checkpoint, sizes),
        logit_softcap=_softcap(config, "final_logit_softcapping"),
    )


def _embedding_scale(checkpoint: Checkpoint, sizes: Sizes) -> float:
    """sqrt(hidden size), rounded as the checkpoint's dtype rounds it: the model was trained with that value."""
    return float(np.array(math.sqrt(sizes.hidden_size)).astype(checkpoint.stored(EMBEDDING).dtype))


def _softcap(config: JsonObject, key: str) -> float | None:
    return None if config.get(key) is None else number(config, key)
