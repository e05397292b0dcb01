"""SmolLM3: Llama with layers that see no positions. Knows no graph.

Source: transformers `configuration_smollm3.py` and `modeling_smollm3.py`.
"""

from __future__ import annotations

from dataclasses import replace

from ortserve.export.architecture import Architecture, Layer
from ortserve.export.errors import ExportError
from ortserve.export.families.decoder_config import (
    SILU_NAMES,
    Sizes,
    check_activation,
    describe,
    layer_kinds,
    llama_layer,
    plain_rope,
    read_sizes,
    window_of,
)
from ortserve.export.families.rope_settings import LayerKind
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.json_fields import JsonObject, flag, integer

DEFAULT_THETA = 2_000_000.0
DEFAULT_INTERVAL = 4  # every fourth layer sees no positions


def read_smollm3(checkpoint: Checkpoint) -> Architecture:
    """`no_rope_layers` says of each layer whether it rotates; where a window is used, the others slide."""
    config = checkpoint.config
    sizes = read_sizes(config, max_context=32768)
    check_activation(config, "smollm3", known=SILU_NAMES)
    rope = plain_rope(config, sizes, DEFAULT_THETA)
    rotates = _rotating_layers(config, sizes)
    slides = flag(config, "use_sliding_window", False) and config.get("sliding_window") is not None

    def kind(index: int) -> LayerKind:
        return "sliding_attention" if slides and not rotates[index] else "full_attention"

    kinds = layer_kinds(config, sizes, kind)

    def layer(index: int) -> Layer:
        plain = llama_layer(config, sizes, index, rope if rotates[index] else None)
        window = window_of(config, kinds[index]) if slides else None
        return replace(plain, attention=replace(plain.attention, window=window))

    return describe(checkpoint, "smollm3", sizes, layer, tied=True)


def _rotating_layers(config: JsonObject, sizes: Sizes) -> tuple[bool, ...]:
    """1 in `no_rope_layers` means that the layer rotates, whatever the name says."""
    written = config.get("no_rope_layers")
    if written is None:
        interval = integer(config, "no_rope_layer_interval", DEFAULT_INTERVAL)
        return tuple((index + 1) % interval != 0 for index in range(sizes.num_layers))
    if (
        not isinstance(written, list)
        or len(written) < sizes.num_layers
        or any(value not in (0, 1) for value in written)
    ):
        raise ExportError(f"config.json: no_rope_layers is no list of {sizes.num_layers} zeros and ones")
    return tuple(value == 1 for value in written[: sizes.num_layers])
