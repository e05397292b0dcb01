"""Granite: Llama with four multipliers. Knows no graph.

Source: transformers `configuration_granite.py` and `modeling_granite.py`.
"""

from __future__ import annotations

from dataclasses import replace

from ortserve.export.architecture import Architecture, Layer
from ortserve.export.families.decoder_config import (
    SILU_NAMES,
    check_activation,
    describe,
    llama_layer,
    llama_mlp,
    plain_rope,
    read_sizes,
)
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.json_fields import number


def read_granite(checkpoint: Checkpoint) -> Architecture:
    """Embeddings, scores and branches are multiplied, logits divided."""
    config = checkpoint.config
    sizes = read_sizes(config)
    check_activation(config, "granite", known=SILU_NAMES)
    rope = plain_rope(config, sizes)
    branch = number(config, "residual_multiplier", 1.0)

    def layer(index: int) -> Layer:
        plain, mlp = llama_layer(config, sizes, index, rope), llama_mlp(config, index)
        attention = replace(
            plain.attention,
            output=replace(plain.attention.output, scale=branch),
            scale=number(config, "attention_multiplier", 1.0),
        )
        return replace(plain, attention=attention, mlp=replace(mlp, down=replace(mlp.down, scale=branch)))

    return describe(
        checkpoint,
        "granite",
        sizes,
        layer,
        tied=False,
        embedding_scale=number(config, "embedding_multiplier", 1.0),
        logit_scale=1.0 / number(config, "logits_scaling", 1.0),
    )
