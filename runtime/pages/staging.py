"""Carries a step's small arrays to a device in one copy. Knows no graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ortserve.runtime.devices.device import Device

_ALIGNMENT = 16


class Staging:
    """Two buffers on the host that take turns, and one on the device, filled anew in every step.

    Arrays of the same types and shapes, in the same order, land at the same addresses: recorded work finds them.
    """

    def __init__(self, device: Device, num_bytes: int) -> None:
        self._device = device
        self._hosts = [device.host_array(num_bytes) for _ in range(2)]
        self._address = device.allocate(num_bytes)

    def send(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, int]:
        """Enqueue one copy of all arrays; returns their addresses. The copy before the last must have been made."""
        self._hosts.reverse()
        host = self._hosts[0]
        addresses: dict[str, int] = {}
        end = 0
        for name, array in arrays.items():
            begin = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = begin + array.nbytes
            assert end <= len(host), f"{name} does not fit the staging buffer"
            host[begin:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            addresses[name] = self._address + begin
        self._device.upload(self._address, host[:end])
        return addresses


def staged_bytes(*num_bytes: int) -> int:
    """Room for arrays of these sizes."""
    return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in num_bytes)
