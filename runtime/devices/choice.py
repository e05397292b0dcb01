"""Decides what `--device` means for a model. Never falls back in silence.

What is missing becomes one line with its remedy. Knows no session.
"""

from __future__ import annotations

import re
from typing import Literal

from ortserve.runtime.devices.cuda import CudaDevice
from ortserve.runtime.devices.cuda_devices import cuda_devices
from ortserve.runtime.devices.cuda_library import has_driver
from ortserve.runtime.devices.device import Device
from ortserve.runtime.errors import ConfigurationError, DeviceError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.session import available_providers

ALL_GPUS = "cuda:all"
_NAMES = re.compile(r"auto|cpu|cuda(:(?P<index>\d+))?")
_GPU = re.compile(r"cuda:\d+")


def choose_devices(name: str, num_engines: int | None, manifest: Manifest) -> tuple[str, ...]:
    """One name for each engine; only of several has it been checked whether the model can run there.

    Raises `DeviceError` for unknown names and a model of the other device, and `ConfigurationError` for GPUs that are
    named twice or are not as many as the engines.
    """
    names = tuple(word.strip() for word in name.split(","))
    if name == ALL_GPUS:
        names = tuple(f"cuda:{one.index}" for one in cuda_devices())
        if not names:
            raise DeviceError("--device cuda:all: no GPU was found (`ortserve doctor` says why): use --device cpu")
    if len(names) > 1 and not all(_GPU.fullmatch(one) for one in names):
        raise DeviceError(f"--device {name} is not a list of GPUs, as cuda:0,cuda:1")
    repeated = next((one for place, one in enumerate(names) if one in names[:place]), None)
    if repeated is not None:
        raise ConfigurationError(f"--device {name} names {repeated} twice: an engine has its GPU alone")
    if name == ALL_GPUS or len(names) > 1:
        if num_engines not in (None, len(names)):
            raise ConfigurationError(
                f"--engines {num_engines} and --device {name}, which is {len(names)} of them, contradict each other:"
                " leave --engines out"
            )
        if manifest.kv.kind != "pages":
            raise DeviceError(f"{manifest.name} was exported for the CPU: export it again with --device cuda")
        return names
    if num_engines is None:
        return names
    if num_engines == 1:
        # Whoever divides the host asks names which memory is the host's.
        return ("cuda:0",) if manifest.kv.kind == "pages" and name in ("auto", "cuda") else names
    if manifest.kv.kind == "pages":
        raise ConfigurationError(
            f"--engines {num_engines} divides the cores of the CPU, and {manifest.name} was exported for CUDA: name the"
            " GPUs instead, as --device cuda:0,cuda:1"
        )
    return names * num_engines


def num_processes(wanted: int | None, device: str, manifest: Manifest) -> int | None:
    """The engine processes of a server with `--engines` as `wanted`, 0 for none; None: what the devices ask for.

    On one GPU, one. Its steps are so short that the engine's Python and the server's wait for each other where they
    share an interpreter: that took half of the tokens per second at 32 streams of a 1B model.
    """
    if wanted is not None:
        return wanted or None
    is_one_gpu = manifest.kv.kind == "pages" and device != ALL_GPUS and "," not in device
    return 1 if is_one_gpu else None


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
    if name != ALL_GPUS and not all(_NAMES.fullmatch(word.strip()) for word in name.split(",")):
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
