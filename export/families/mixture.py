"""Qwen3-MoE and Mixtral: Qwen3 and Mistral with experts in place of MLPs. Knows no graph.

Source: transformers `configuration_qwen3_moe.py`, `modeling_qwen3_moe.py`, `configuration_mixtral.py`,
`modeling_mixtral.py`. Checkpoints hold every expert's matrices as tensors of their own.
"""

from __future__ import annotations

from dataclasses import replace

from ortserve.export.architecture import Architecture, Experts, Layer, Mlp
from ortserve.export.errors import ExportError
from ortserve.export.families.decoder_config import linear
from ortserve.export.families.llama import read_mistral_layers
from ortserve.export.families.qwen import read_qwen3_layers
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.json_fields import JsonObject, flag, integer

MAX_EXPERTS = 1024  # of a layer; the largest published have 512


def read_qwen3_moe(checkpoint: Checkpoint) -> Architecture:
    """Experts in every `decoder_sparse_step`-th layer but those in `mlp_only_layers`.

    transformers 4 writes `num_experts`, 5 `num_local_experts`.
    """
    config = checkpoint.config
    plain = config.get("mlp_only_layers") or []
    if not isinstance(plain, list) or not all(isinstance(index, int) for index in plain):
        raise ExportError("config.json: mlp_only_layers is no list of layer numbers")
    step = integer(config, "decoder_sparse_step", 1)
    size = integer(config, "moe_intermediate_size", 768)
    count = integer(config, "num_local_experts" if "num_local_experts" in config else "num_experts", 128)
    active = _active(config, count, 8)
    normalized = flag(config, "norm_topk_prob", False)

    def differ(layer: Layer, index: int) -> Layer:
        if index in plain or (index + 1) % step:
            return layer
        prefix = f"model.layers.{index}.mlp."
        experts = _experts(f"{prefix}experts.", count, ("gate_proj", "up_proj", "down_proj"))
        return replace(layer, mlp=Experts(linear(prefix, "gate"), experts, size, active, normalized))

    return read_qwen3_layers(checkpoint, "qwen3_moe", differ)


def read_mixtral(checkpoint: Checkpoint) -> Architecture:
    """Experts in every layer, of the size that Mistral's MLPs have."""
    config = checkpoint.config
    size = integer(config, "intermediate_size")
    count = integer(config, "num_local_experts", 8)
    active = _active(config, count, 2)

    def differ(layer: Layer, index: int) -> Layer:
        prefix = f"model.layers.{index}.block_sparse_moe."
        experts = _experts(f"{prefix}experts.", count, ("w1", "w3", "w2"))
        return replace(layer, mlp=Experts(linear(prefix, "gate"), experts, size, active, normalized=True))

    return read_mistral_layers(checkpoint, "mixtral", differ)


def _active(config: JsonObject, count: int, default: int) -> int:
    active = integer(config, "num_experts_per_tok", default)
    if active > count or count > MAX_EXPERTS:
        raise ExportError(f"config.json: {active} of {count} experts a token: export knows {MAX_EXPERTS} at most")
    return active


def _experts(prefix: str, count: int, names: tuple[str, str, str]) -> tuple[Mlp, ...]:
    """Gate, up and down of each, by their names."""

    def expert(index: int) -> Mlp:
        gate, up, down = (linear(f"{prefix}{index}.", name) for name in names)
        return Mlp(gate, up, down)

    return tuple(expert(index) for index in range(count))
