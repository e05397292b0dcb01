"""Packs checkpoints as AutoAWQ and AutoGPTQ do, code by code from their definitions. Shares nothing with a reader."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.export.checkpoints import Tiny, write_json

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column whose code is the i-th of a word, counted from its low end
Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Form:
    """One way a checkpoint can be quantized."""

    method: str = "awq"
    version: str = "gemm"  # gemm, gemv; gptq, gptq_v2
    bits: int = 4
    group_size: int = 64
    symmetric: bool = False
    shuffled: bool = False  # columns are in the groups of another order
    left_out: tuple[str, ...] = ()  # parts of the names of matrices that stay floats

    def settings(self) -> dict[str, Any]:
        if self.method == "awq":
            return {
                "quant_method": "awq",
                "version": self.version,
                "bits": self.bits,
                "group_size": self.group_size,
                "zero_point": True,
                "modules_to_not_convert": list(self.left_out) or None,
            }
        return {
            "quant_method": "gptq",
            "checkpoint_format": self.version,
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.symmetric,
            "desc_act": self.shuffled,
        }


def write_quantized(folder: Path, tiny: Tiny, form: Form) -> dict[str, NDArray[np.float32]]:
    """Write the checkpoint; what its tensors stand for by the formats' own formula, in float32."""
    folder.mkdir(parents=True)
    tensors = replace(tiny, dtype="F16").tensors()
    meant: dict[str, NDArray[np.float32]] = {}
    stored: dict[str, Values] = {}
    for name, values in tensors.items():
        is_packed = name.endswith("_proj.weight") and not any(part in name for part in form.left_out)
        if is_packed:
            packed, meant[name] = quantize(values.astype(np.float32), form)
            stored |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in packed.items()}
        else:
            stored[name] = values
            meant[name] = values.astype(np.float32)
    write_json(folder / "config.json", {**tiny.config_json(), "quantization_config": form.settings()})
    save_file({name: np.ascontiguousarray(values) for name, values in stored.items()}, folder / "model.safetensors")
    return meant


def quantize(weight: NDArray[np.float32], form: Form) -> tuple[dict[str, Values], NDArray[np.float32]]:
    """The packed parts of one matrix `[rows, columns]`, and its values."""
    num_rows, num_columns = weight.shape
    size = num_columns if form.group_size == -1 else form.group_size
    groups = np.arange(num_columns) // size
    if form.shuffled:
        groups = np.random.default_rng(num_columns).permutation(groups)
    highest, middle = (1 << form.bits) - 1, 1 << form.bits - 1
    num_groups = int(groups.max()) + 1
    scales = np.empty((num_rows, num_groups), np.float16)
    zeros = np.empty((num_rows, num_groups), np.int64)
    for group in range(num_groups):
        part = weight[:, groups == group]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        if form.symmetric:
            high = np.maximum(high, -low)
            low = -high
        scales[:, group] = np.maximum((high - low) / highest, 1e-4)
        zeros[:, group] = middle if form.symmetric else np.rint(-low / scales[:, group].astype(np.float32))
    if form.version == "gptq":
        zeros = np.maximum(zeros, 1)  # its libraries do not write a zero point of 0
    zeros = np.minimum(zeros, highest)
    wide = scales.astype(np.float32)
    codes = np.clip(np.rint(weight / wide[:, groups]) + zeros[:, groups], 0, highest).astype(np.int64)
    meant = ((codes - zeros[:, groups]).astype(np.float32) * wide[:, groups]).astype(np.float32)
    return _pack(codes, zeros, scales, groups, form), meant


def _pack(codes: Values, zeros: Values, scales: Values, groups: Values, form: Form) -> dict[str, Values]:
    if form.version == "gemm":
        return {
            "qweight": words(codes.T, 4, AWQ_ORDER),
            "qzeros": words(zeros.T, 4, AWQ_ORDER),
            "scales": scales.T,
        }
    if form.version == "gemv":
        width = _gemv_width(codes.shape[1], form.group_size)
        padding = ((0, 0), (0, width * 8 - zeros.shape[1]))
        return {
            "qweight": words(codes, 4),
            "qzeros": words(np.pad(zeros, padding), 4),
            "scales": np.pad(scales, padding),
        }
    less = zeros - 1 if form.version == "gptq" else zeros
    return {
        "qweight": words(codes, form.bits).T,
        "qzeros": words(less.T, form.bits),
        "scales": scales.T,
        "g_idx": groups.astype(np.int32),
    }


def _gemv_width(num_columns: int, group_size: int) -> int:
    """Words of zero points: enough for the groups, in multiples that its kernel reads at once."""
    multiple = {128: 1, 64: 2, 32: 4}[group_size]
    return math.ceil(math.ceil(num_columns // group_size / 8) / multiple) * multiple


def words(codes: Values, bits: int, order: tuple[int, ...] | None = None) -> NDArray[np.int32]:
    """`[n, k]` codes to `[n, k * bits / 32]` words."""
    per_word = 32 // bits
    order = order or tuple(range(per_word))
    packed = np.zeros((len(codes), codes.shape[1] // per_word), np.uint32)
    for word in range(packed.shape[1]):
        for place in range(per_word):
            packed[:, word] |= codes[:, word * per_word + order[place]].astype(np.uint32) << np.uint32(place * bits)
    return packed.view(np.int32)
