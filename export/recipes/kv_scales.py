"""What keys and values reach on calibration text, and the scales that a quantized KV cache stores them by.

The cache's codes are symmetric, with one scale for each channel of each head. Knows no graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture, Attention
from ortserve.export.errors import ExportError
from ortserve.export.float_reference.forward import CheckpointWeights, final_states
from ortserve.export.recipes.precisions import KvPrecision
from ortserve.export.recipes.sensitivity import calibration_sequences
from ortserve.export.sources.checkpoint import Checkpoint

Floats = NDArray[np.float32]
LARGEST_CODES: Mapping[KvPrecision, float] = {"int8": 127.0, "fp8": 448.0}
MARGIN = 1.05  # beyond what the calibration text reaches; other text is cut off there
SMALLEST_SHARE = 1e-4  # channels are treated as at least this share of the largest one


@dataclass(frozen=True, slots=True, eq=False)
class KvRange:
    """Largest magnitudes of one layer, `[kv_heads, head_dim]` each; of rotated keys whatever their position."""

    key: Floats
    value: Floats


@dataclass(frozen=True, slots=True, eq=False)
class KvScales:
    """What one code stands for in one layer, `[kv_heads, head_dim]` each."""

    key: Floats
    value: Floats


KvRanges: TypeAlias = Mapping[Attention, KvRange]


def measure_kv_ranges(checkpoint: Checkpoint, architecture: Architecture, *, text: Path | None = None) -> KvRanges:
    """Of every layer, from a float pass over `text` or the bundled calibration text.

    Raises `ExportError` for text that cannot be read, and for a checkpoint that computes values that are not finite.
    """
    watching = _Watching(checkpoint)
    final_states(watching, architecture, calibration_sequences(checkpoint, architecture, text))
    return watching.ranges


def kv_scales(
    architecture: Architecture,
    ranges: KvRanges,
    kv: KvPrecision,
    value_divisors: Sequence[Floats | None],
) -> tuple[KvScales, ...]:
    """Of every layer. `value_divisors`: what the stored values of each are divided by, `[kv_heads * head_dim]`."""
    found: list[KvScales] = []
    for layer, divisor in zip(architecture.layers, value_divisors, strict=True):
        seen = ranges[layer.attention]
        value = seen.value if divisor is None else seen.value / divisor.reshape(seen.value.shape)
        found.append(KvScales(_scale(seen.key, kv), _scale(value, kv)))
    return tuple(found)


def _scale(largest: Floats, kv: KvPrecision) -> Floats:
    bounded = np.maximum(largest, max(float(largest.max()) * SMALLEST_SHARE, 1e-20))
    scale: Floats = (bounded * (MARGIN / LARGEST_CODES[kv])).astype(np.float32)
    return scale


class _Watching(CheckpointWeights):
    """The checkpoint's weights, watching what would be stored."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.ranges: dict[Attention, KvRange] = {}

    def cached(self, attention: Attention, key: Floats, value: Floats) -> tuple[Floats, Floats]:
        """See `CheckpointWeights.cached`."""
        if not (np.isfinite(key).all() and np.isfinite(value).all()):
            name = attention.qkv.weights[0]
            raise ExportError(f"{name} gives values that are not finite: download the checkpoint again")
        found = KvRange(_largest_keys(attention, key), np.abs(value).max(axis=0))
        seen = self.ranges.get(attention)
        if seen is not None:
            found = KvRange(np.maximum(seen.key, found.key), np.maximum(seen.value, found.value))
        self.ranges[attention] = found
        return key, value


def _largest_keys(attention: Attention, key: Floats) -> Floats:
    """Both components of a pair that rotates reach, at some position, the length of the pair."""
    if attention.rope is None:
        plain: Floats = np.abs(key).max(axis=0)
        return plain
    half = attention.rope.rotary_dim // 2
    pairs = np.hypot(key[..., :half], key[..., half : 2 * half])
    largest: Floats = np.concatenate([pairs, pairs, np.abs(key[..., 2 * half :])], axis=-1).max(axis=0)
    return largest
