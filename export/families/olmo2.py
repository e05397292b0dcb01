"""OLMo 2: norms after attention and MLP only, and of whole query and key projections. Knows no graph.

Source: transformers `configuration_olmo2.py` and `modeling_olmo2.py`.
"""

from __future__ import annotations

from dataclasses import replace

from ortserve.export.architecture import Architecture, Layer, QueryKeyNorm
from ortserve.export.families.decoder_config import (
    SILU_NAMES,
    check_activation,
    describe,
    llama_attention,
    llama_mlp,
    norm,
    plain_rope,
    read_sizes,
)
from ortserve.export.sources.checkpoint import Checkpoint


def read_olmo2(checkpoint: Checkpoint) -> Architecture:
    """Branches read the residual stream as it is."""
    config = checkpoint.config
    sizes = read_sizes(config, norm_epsilon=1e-5)
    check_activation(config, "olmo2", known=SILU_NAMES)
    rope = plain_rope(config, sizes)

    def layer(index: int) -> Layer:
        prefix = f"model.layers.{index}."
        of_projections = QueryKeyNorm(
            norm(sizes, f"{prefix}self_attn.q_norm.weight", width=sizes.num_heads * sizes.head_dim),
            norm(sizes, f"{prefix}self_attn.k_norm.weight", width=sizes.num_kv_heads * sizes.head_dim),
        )
        return Layer(
            attention_norm=None,
            attention=replace(llama_attention(config, sizes, index, rope), norm=of_projections),
            attention_post_norm=norm(sizes, f"{prefix}post_attention_layernorm.weight"),
            mlp_norm=None,
            mlp=llama_mlp(config, index),
            mlp_post_norm=norm(sizes, f"{prefix}post_feedforward_layernorm.weight"),
        )

    return describe(checkpoint, "olmo2", sizes, layer, tied=False)
