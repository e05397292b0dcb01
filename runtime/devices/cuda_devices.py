"""Which NVIDIA GPUs this process may use, as the driver tells. Makes no context on any, which would take memory of it.

Source: CUDA Driver API 13.0.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_size_t, create_string_buffer
from dataclasses import dataclass
from typing import Any

from ortserve.runtime.devices.cuda_library import DRIVER
from ortserve.runtime.errors import DeviceError

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 128


@dataclass(frozen=True, slots=True)
class CudaFacts:
    """One GPU. `index` is what `--device cuda:N` means; CUDA_VISIBLE_DEVICES decides which there are."""

    index: int
    name: str
    total_bytes: int
    capability: tuple[int, int]

    def __str__(self) -> str:
        """For people."""
        major, minor = self.capability
        return f"cuda:{self.index} {self.name}, {self.total_bytes / 2**30:.0f} GiB, compute capability {major}.{minor}"


def cuda_devices(library: Any = None) -> tuple[CudaFacts, ...]:
    """All of them; none without a driver, whose library is `library`. Raises `DeviceError` when it fails."""
    if library is None:
        try:
            library = ctypes.CDLL(DRIVER)
        except OSError:
            return ()
    status = library.cuInit(0)
    if status == _NO_DEVICE:
        return ()
    _check(status, "start")
    count = c_int()
    _check(library.cuDeviceGetCount(byref(count)), "count the GPUs")
    return tuple(_facts(library, index) for index in range(count.value))


def _facts(library: Any, index: int) -> CudaFacts:
    device, total = c_int(), c_size_t()
    name = create_string_buffer(_NAME_BYTES)
    _check(library.cuDeviceGet(byref(device), index), f"find cuda:{index}")
    _check(library.cuDeviceGetName(name, _NAME_BYTES, device), f"name cuda:{index}")
    _check(library.cuDeviceTotalMem_v2(byref(total), device), f"measure cuda:{index}")
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = c_int()
        _check(library.cuDeviceGetAttribute(byref(value), attribute, device), f"ask cuda:{index}")
        capability.append(value.value)
    return CudaFacts(index, name.value.decode(errors="replace"), total.value, (capability[0], capability[1]))


def _check(status: int, action: str) -> None:
    if status:
        raise DeviceError(f"the NVIDIA driver cannot {action} (CUDA error {status}): see nvidia-smi")
