"""The precisions a graph can have, and what else options choose among, as words and numbers. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "int8", "int4", "fp16", "bf16"]
Device = Literal["cpu", "cuda"]
Activations = Literal["calibrated", "token"]
KvPrecision = Literal["float", "int8", "fp8"]  # of stored keys and values; float: as activations
ReferenceName = Literal["auto", "numpy", "transformers"]  # what a proof compares with
DEVICE_PRECISIONS: Mapping[Device, tuple[Precision, ...]] = {
    "cpu": ("int8", "int4", "fp32"),
    "cuda": ("bf16", "fp16", "int4"),
}
DEVICE_KV: Mapping[Device, tuple[KvPrecision, ...]] = {"cpu": ("float", "int8"), "cuda": ("float", "int8", "fp8")}
KV_PRECISIONS: tuple[KvPrecision, ...] = ("float", "int8", "fp8")
DEVICES: tuple[Device, ...] = ("cpu", "cuda")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4", "fp16", "bf16")
FLOAT_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
DEFAULT_BLOCK_SIZE = 128
CUDA_BLOCK_SIZE = 32  # the only int4 form that ONNX Runtime's mixed-type CUDA kernels take
BLOCK_SIZES = (16, 32, 64, 128, 256)
ACTIVATIONS: tuple[Activations, ...] = ("calibrated", "token")
REFERENCES: tuple[ReferenceName, ...] = ("auto", "numpy", "transformers")


@dataclass(frozen=True, slots=True)
class Forms:
    """Spellings of one function in operators: which is fastest depends on kernels, so each can be chosen apart."""

    gate: Literal["two", "one"]  # nodes that activate a gate and multiply by it
    gate_up: Literal["apart", "stacked"]  # products of 4-bit matrices
    head: Literal["float", "int8", "int4"]  # the output matrix beside 4-bit matrices; int8: per row on the CPU


CPU_FORMS = Forms(gate="two", gate_up="apart", head="int8")
CUDA_FORMS = Forms(gate="one", gate_up="stacked", head="int8")
FORMS: Mapping[Device, Forms] = {"cpu": CPU_FORMS, "cuda": CUDA_FORMS}


def default_block_size(device: Device) -> int:
    """Of int4."""
    return DEFAULT_BLOCK_SIZE if device == "cpu" else CUDA_BLOCK_SIZE
