"""Which GPUs there are, by a driver that answers as NVIDIA's does."""

from __future__ import annotations

from typing import Any

import pytest

from ortserve.runtime.devices.cuda_devices import CudaFacts, cuda_devices
from ortserve.runtime.errors import DeviceError


class Driver:
    """Calls of the CUDA driver API with their out-parameters."""

    def __init__(self, *names: bytes, status: int = 0) -> None:
        self._names = names
        self._status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self._names)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = 40 + index  # a handle, not the index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = self._names[device.value - 40]
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, device: Any) -> int:  # noqa: N802
        total._obj.value = (device.value - 39) * 2**30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_all_gpus_are_told_with_what_they_are() -> None:
    devices = cuda_devices(Driver(b"First", b"Second"))
    assert devices == (CudaFacts(0, "First", 2**30, (9, 0)), CudaFacts(1, "Second", 2**31, (9, 0)))
    assert str(devices[1]) == "cuda:1 Second, 2 GiB, compute capability 9.0"


def test_no_gpu_is_no_error_and_a_broken_driver_is_one() -> None:
    assert cuda_devices(Driver(status=100)) == ()
    with pytest.raises(DeviceError, match=r"cannot start \(CUDA error 999\): see nvidia-smi"):
        cuda_devices(Driver(status=999))
