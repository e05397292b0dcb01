"""Phi-3, 3.5 and Phi-4-mini: fused projections, partial rotation, LongRoPE. Knows no graph.

Source: transformers `configuration_phi3.py` and `modeling_phi3.py`.
"""

from __future__ import annotations

from dataclasses import replace

from ortserve.export.architecture import Architecture, Layer, Linear, Mlp
from ortserve.export.families.decoder_config import (
    SILU_NAMES,
    Sizes,
    check_activation,
    describe,
    linear,
    llama_layer,
    read_sizes,
)
from ortserve.export.families.rope_settings import ALIASES, read_rope
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.json_fields import integer

DEFAULT_CONTEXT = 4096
PHI_ALIASES = {**ALIASES, "yarn": "longrope"}  # early Phi-3 files say yarn and mean LongRoPE


def read_phi3(checkpoint: Checkpoint) -> Architecture:
    """One tensor holds queries, keys and values, one holds gate and up, in this order; a window slides everywhere."""
    config = {"original_max_position_embeddings": DEFAULT_CONTEXT, **checkpoint.config}
    sizes = read_sizes(config, max_context=DEFAULT_CONTEXT, norm_epsilon=1e-5)
    check_activation(config, "phi3", known=SILU_NAMES)
    rope = read_rope(config, head_dim=sizes.head_dim, max_context=sizes.max_context, aliases=PHI_ALIASES)
    window = None if config.get("sliding_window") is None else integer(config, "sliding_window")

    def layer(index: int) -> Layer:
        plain, prefix = llama_layer(config, sizes, index, rope), f"model.layers.{index}."
        attention = replace(
            plain.attention,
            qkv=linear(prefix, "self_attn.qkv_proj"),
            output=linear(prefix, "self_attn.o_proj"),
            window=window,
        )
        return replace(plain, attention=attention, mlp=_mlp(prefix, sizes))

    return describe(checkpoint, "phi3", sizes, layer, tied=False)


def _mlp(prefix: str, sizes: Sizes) -> Mlp:
    both, inner = linear(prefix, "mlp.gate_up_proj"), sizes.intermediate_size
    gate: Linear = replace(both, rows=(0, inner))
    return Mlp(gate=gate, up=replace(both, rows=(inner, 2 * inner)), down=linear(prefix, "mlp.down_proj"))
