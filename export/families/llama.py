"""Llama 2 and 3, SmolLM2, TinyLlama, and Mistral: reads their configuration into an `Architecture`. Knows no graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ortserve.export.architecture import Architecture, Layer
from ortserve.export.families.decoder_config import (
    SILU_NAMES,
    check_activation,
    describe,
    llama_layer,
    plain_rope,
    read_sizes,
    unchanged,
)
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.json_fields import integer


def read_llama(checkpoint: Checkpoint) -> Architecture:
    """Source: transformers `LlamaConfig` and `modeling_llama.py`. Raises `ExportError` for what the graph cannot do."""
    return _read(checkpoint, family="llama", window=None)


def read_mistral(checkpoint: Checkpoint) -> Architecture:
    """Llama with an optional sliding window in all layers (transformers `MistralConfig`)."""
    return read_mistral_layers(checkpoint, "mistral", unchanged)


def read_mistral_layers(checkpoint: Checkpoint, family: str, differ: Callable[[Layer, int], Layer]) -> Architecture:
    """Mistral, with layers that a family changes by their index."""
    config = checkpoint.config
    window = None if config.get("sliding_window") is None else integer(config, "sliding_window")
    return _read(checkpoint, family=family, window=window, differ=differ)


def _read(
    checkpoint: Checkpoint,
    *,
    family: str,
    window: int | None,
    differ: Callable[[Layer, int], Layer] = unchanged,
) -> Architecture:
    config = checkpoint.config
    sizes = read_sizes(config)
    check_activation(config, family, known=SILU_NAMES)
    rope = plain_rope(config, sizes)

    def layer(index: int) -> Layer:
        plain = llama_layer(config, sizes, index, rope)
        return differ(replace(plain, attention=replace(plain.attention, window=window)), index)

    return describe(checkpoint, family, sizes, layer, tied=False)
