"""Decides what `--device` means for a model. Never falls back in silence.

What is missing becomes one line with its remedy. Knows no session.
"""

from __future__ import annotations

import re
from typing import Literal

from ortserve.runtime.cuda import CudaDevice
from ortserve.runtime.cuda_library import has_driver
from ortserve.runtime.device import Device
from ortserve.runtime.errors import DeviceError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.session import available_providers

_NAMES = re.compile(r"auto|cpu|cuda(:(?P<index>\d+))?")


def choose_device(name: str, manifest: Manifest) -> Device | None:
    """The device of a model in layout "pages"; None for one in layout "slots", which runs on the CPU.

    Raises `DeviceError` for an unknown name, a model exported for the other device, and a device that cannot be used.
    """
    match = _NAMES.fullmatch(name)
    if match is None:
        raise DeviceError(f"--device {name} is unknown: use auto, cpu, cuda or cuda:1")
    is_paged = manifest.kv.kind == "pages"
    if is_paged and name == "cpu":
        raise DeviceError(
            f"{manifest.name} was exported for CUDA: export it again with --device cpu, or use --device cuda"
        )
    if not is_paged and name.startswith("cuda"):
        raise DeviceError(f"{manifest.name} was exported for the CPU: export it again with --device cuda")
    return open_cuda(int(match["index"] or 0)) if is_paged else None


def export_target(name: str) -> Literal["cpu", "cuda"]:
    """What a checkpoint that is served with `--device name` is to be exported for. Auto: CUDA where it can be used.

    Raises `DeviceError` for an unknown name.
    """
    if _NAMES.fullmatch(name) is None:
        raise DeviceError(f"--device {name} is unknown: use auto, cpu, cuda or cuda:1")
    if name == "auto":
        return "cuda" if "CUDAExecutionProvider" in available_providers() and has_driver() else "cpu"
    return "cpu" if name == "cpu" else "cuda"


def open_cuda(index: int) -> CudaDevice:
    """Raises `DeviceError` with the remedy when ONNX Runtime, a library, the driver or the device is missing."""
    if "CUDAExecutionProvider" not in available_providers():
        raise DeviceError(
            "the installed ONNX Runtime has no CUDA: pip uninstall -y onnxruntime && pip install 'ortserve[cuda]'"
        )
    return CudaDevice(index)
