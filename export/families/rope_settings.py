"""Reads rotary settings of config.json, in the spelling of transformers 4 or 5. Knows no tensors.

transformers 4 writes `rope_theta` and `rope_scaling`; transformers 5 writes `rope_parameters`, flat or one object per
kind of layer. Source: transformers `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from ortserve.export.architecture import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Rope,
    YarnScaling,
)
from ortserve.export.errors import ExportError
from ortserve.export.sources.json_fields import JsonObject, flag, integer, number

LayerKind = Literal["full_attention", "sliding_attention"]
LAYER_KINDS: tuple[LayerKind, ...] = ("full_attention", "sliding_attention")
ROPE_KINDS = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")
ALIASES: Mapping[str, str] = {"su": "longrope"}  # as the first Phi-3 called it


def read_rope(
    config: JsonObject,
    *,
    head_dim: int,
    max_context: int,
    default_theta: float = 10000.0,
    layer_kind: LayerKind = "full_attention",
    aliases: Mapping[str, str] = ALIASES,
) -> Rope:
    """The rotary embedding of one kind of layer. Raises `ExportError` for kinds and values the graph cannot hold."""
    fields = rope_fields(config, layer_kind)
    named = fields.get("rope_type") or fields.get("type") or "default"
    kind = aliases.get(named, named) if isinstance(named, str) else named
    if kind not in ROPE_KINDS:
        raise ExportError(f"config.json: rope_type {named!r} is not supported: export knows {', '.join(ROPE_KINDS)}")
    theta = number(fields, "rope_theta", number(config, "rope_theta", default_theta))
    share = number(fields, "partial_rotary_factor", number(config, "partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * share)
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise ExportError(
            f"config.json: partial_rotary_factor {share:g} rotates {rotary_dim} of {head_dim} components: export"
            " rotates pairs, at least one"
        )
    if kind == "default":
        return Rope(theta, rotary_dim)
    if kind == "dynamic":  # transformers counts from max_position_embeddings here, whatever else is written
        factor = number(fields, "factor")
        if factor < 1 or rotary_dim < 4:
            raise ExportError(
                f"config.json: dynamic rope scaling with factor {factor:g} over {rotary_dim} rotated components:"
                " export knows factors of at least 1 over at least 4 components"
            )
        return Rope(theta, rotary_dim, DynamicScaling(factor, max_context))
    if kind == "linear":
        return Rope(theta, rotary_dim, LinearScaling(number(fields, "factor")))
    original = _original_context(config, fields, max_context)
    if kind == "llama3":
        low, high = number(fields, "low_freq_factor"), number(fields, "high_freq_factor")
        if low >= high:
            raise ExportError(f"config.json: low_freq_factor {low:g} is not below high_freq_factor {high:g}")
        return Rope(theta, rotary_dim, Llama3Scaling(number(fields, "factor"), low, high, original))
    factor = number(fields, "factor", max_context / original)
    if kind == "yarn":
        if theta <= 1:
            raise ExportError(f"config.json: rope_theta {theta:g} does not slow any pair down, which yarn needs")
        return Rope(theta, rotary_dim, _yarn(fields, factor, original), _yarn_attention_factor(fields, factor))
    attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (_factors(fields, key, rotary_dim // 2) for key in ("short_factor", "long_factor"))
    scaling = LongRope(short, long, original)
    return Rope(theta, rotary_dim, scaling, number(fields, "attention_factor", attention))


def rope_fields(config: JsonObject, layer_kind: LayerKind) -> JsonObject:
    """The settings of one kind of layer; an empty object when none are written."""
    fields = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(fields, dict) and any(kind in fields for kind in LAYER_KINDS):
        fields = fields.get(layer_kind) or {}
    if not isinstance(fields, dict):
        raise ExportError(f"config.json: rope scaling is {fields!r}, expected an object")
    return fields


def _original_context(config: JsonObject, fields: JsonObject, max_context: int) -> int:
    """Phi-3 writes it beside the other settings, which then counts."""
    inner = integer(fields, "original_max_position_embeddings", max_context)
    original = integer(config, "original_max_position_embeddings", inner)
    if original < 2:
        raise ExportError(f"config.json: original_max_position_embeddings {original} leaves nothing to stretch")
    return original


def _yarn(fields: JsonObject, factor: float, original_context: int) -> YarnScaling:
    return YarnScaling(
        factor=factor,
        original_context=original_context,
        beta_fast=number(fields, "beta_fast", 32.0),
        beta_slow=number(fields, "beta_slow", 1.0),
        truncate=flag(fields, "truncate", True),
    )


def _yarn_attention_factor(fields: JsonObject, factor: float) -> float:
    """Written, or from `factor`; DeepSeek's two scales divide each other."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    inferred = scale(1.0)
    if fields.get("mscale") and fields.get("mscale_all_dim"):
        inferred = scale(number(fields, "mscale")) / scale(number(fields, "mscale_all_dim"))
    return number(fields, "attention_factor", inferred)


def _factors(fields: JsonObject, key: str, num_pairs: int) -> tuple[float, ...]:
    values = fields.get(key)
    if not isinstance(values, list) or len(values) != num_pairs:
        raise ExportError(f"config.json: longrope's {key} is no list of {num_pairs} numbers, one for each rotated pair")
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 for value in values):
        raise ExportError(f"config.json: longrope's {key} holds values that are no positive numbers")
    return tuple(float(value) for value in values)
