"""A second, independent decoder: float64, one token at a time with explicit caches, rotation matrices and loops.

It reads config.json and the tensors itself and shares nothing with `ortserve.export`, so an error common to graph and
reference shows here. Source: transformers modeling_llama.py, modeling_mistral.py and modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def oracle_logits(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], tokens: list[int]) -> Floats:
    """Logits after every token, `[len(tokens), vocab]`."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    caches: list[list[tuple[Floats, Floats]]] = [[] for _ in range(config["num_hidden_layers"])]
    rows = []
    for position, token in enumerate(tokens):
        x = weights["model.embed_tokens.weight"][token]
        for index, cache in enumerate(caches):
            layer = _under(weights, f"model.layers.{index}.")
            normed = _norm(x, layer["input_layernorm.weight"], config["rms_norm_eps"])
            x = x + _attention(config, layer, normed, position, cache)
            normed = _norm(x, layer["post_attention_layernorm.weight"], config["rms_norm_eps"])
            gate = _apply(layer, "mlp.gate_proj", normed)
            swish = np.array([value / (1 + math.exp(-value)) for value in gate])
            x = x + _apply(layer, "mlp.down_proj", swish * _apply(layer, "mlp.up_proj", normed))
        rows.append(head @ _norm(x, weights["model.norm.weight"], config["rms_norm_eps"]))
    return np.array(rows)


def _attention(
    config: Mapping[str, Any], layer: Mapping[str, Floats], x: Floats, position: int, cache: list[tuple[Floats, Floats]]
) -> Floats:
    size = config["head_dim"]
    turn = _rotation(config, position)
    queries = [turn @ part for part in _apply(layer, "self_attn.q_proj", x).reshape(-1, size)]
    keys = np.array([turn @ part for part in _apply(layer, "self_attn.k_proj", x).reshape(-1, size)])
    cache.append((keys, _apply(layer, "self_attn.v_proj", x).reshape(-1, size)))
    window = config.get("sliding_window") or len(cache)
    visible = cache[-window:]
    heads = []
    for head, query in enumerate(queries):
        group = head * len(keys) // len(queries)
        scores = [float(query @ stored[group]) / math.sqrt(size) for stored, _ in visible]
        powers = [math.exp(score - max(scores)) for score in scores]
        mixed = sum(power * stored[group] for power, (_, stored) in zip(powers, visible, strict=True))
        heads.append(mixed / sum(powers))
    return _apply(layer, "self_attn.o_proj", np.concatenate(heads))


def _rotation(config: Mapping[str, Any], position: int) -> Floats:
    """Turns component i towards component i + half: the rotate-half convention, as a matrix."""
    size = config["head_dim"]
    rotary = int(size * config.get("partial_rotary_factor", 1.0))
    matrix = np.eye(size)
    for pair in range(rotary // 2):
        angle = position * _frequency(config, pair, rotary)
        low, high = pair, pair + rotary // 2
        matrix[low, low] = matrix[high, high] = math.cos(angle)
        matrix[low, high], matrix[high, low] = -math.sin(angle), math.sin(angle)
    return matrix


def _frequency(config: Mapping[str, Any], pair: int, rotary: int) -> float:
    frequency = 1 / config["rope_theta"] ** (2 * pair / rotary)
    scaling = config.get("rope_scaling")
    if scaling is None:
        return float(frequency)
    if scaling["rope_type"] == "linear":
        return float(frequency / scaling["factor"])
    length = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / frequency
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    if wavelength > length / low:
        return float(frequency / scaling["factor"])
    if wavelength < length / high:
        return float(frequency)
    blend = (length / wavelength - low) / (high - low)
    return float((1 - blend) * frequency / scaling["factor"] + blend * frequency)


def _under(weights: Mapping[str, Floats], prefix: str) -> dict[str, Floats]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _apply(layer: Mapping[str, Floats], name: str, x: Floats) -> Floats:
    product: Floats = layer[f"{name}.weight"] @ x + layer.get(f"{name}.bias", 0.0)
    return product


def _norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    normed: Floats = x / math.sqrt(float(np.mean(x * x)) + epsilon) * weight
    return normed
