"""Where a paged model computes: memory, ordered copies and recorded work of one device. Knows no model and no tensors.

`CudaDevice` (`cuda`) is the one to serve with; `HostDevice` stands in for it in tests, with the same order of events.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]
Launch: TypeAlias = Callable[[], None]  # enqueues recorded work once more


@dataclass(frozen=True, slots=True)
class Strided:
    """`height` pieces of memory, `pitch` bytes apart."""

    address: int
    pitch: int


class Device(Protocol):
    """One device. Work and copies run in the order they are enqueued; nothing waits but `synchronize`."""

    @property
    def kind(self) -> str:
        """What ONNX Runtime calls it: cpu or cuda."""

    @property
    def index(self) -> int:
        """Which of its kind."""

    @property
    def stream(self) -> int:
        """Handle of the queue that work is enqueued on; 0: there is none."""

    def allocate(self, num_bytes: int) -> int:
        """The address of zeroed memory that lives as long as the device. Raises `MemoryBudgetError`."""

    def host_array(self, num_bytes: int) -> Bytes:
        """Host memory that copies can run from and to without waiting. Raises `MemoryBudgetError`."""

    def upload(self, target: int, source: Bytes) -> None:
        """Copy a host array to the device. The array must not change before the next `synchronize`."""

    def download(self, target: Bytes, source: int) -> None:
        """Copy device memory to a host array, which holds it after the next `synchronize`."""

    def copy(self, target: Strided, source: Strided, *, width: int, height: int) -> None:
        """Copy `height` pieces of `width` bytes; either side may be device memory or an array of `host_array`."""

    def copy_now(self, target: Strided, source: Strided, *, width: int, height: int) -> None:
        """As `copy`, at once and from any thread: for memory that nothing enqueued writes."""

    def synchronize(self) -> None:
        """Wait for everything enqueued. Raises `DeviceError` for work that has failed."""

    def mark(self) -> Callable[[], None]:
        """Waits, when it is called, for what is enqueued now, and not for what will be. Raises as `synchronize`."""

    def record(self, enqueue: Callable[[], None]) -> Launch | None:
        """Record what `enqueue` enqueues, without running it; None where the device or the work cannot."""

    def free_bytes(self) -> int:
        """Memory that `allocate` could still give."""


class HostDevice:
    """The processor as a device: everything has happened when a call returns, and nothing is recorded."""

    kind = "cpu"
    index = 0
    stream = 0

    def __init__(self, *, memory: int = 1 << 30) -> None:
        self._memory = memory
        self._held: list[Bytes] = []

    def allocate(self, num_bytes: int) -> int:
        """Part of `Device`."""
        return int(self.host_array(num_bytes).ctypes.data)

    def host_array(self, num_bytes: int) -> Bytes:
        """Part of `Device`."""
        array = np.zeros(max(num_bytes, 1), np.uint8)
        self._held.append(array)
        return array

    def upload(self, target: int, source: Bytes) -> None:
        """Part of `Device`."""
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def download(self, target: Bytes, source: int) -> None:
        """Part of `Device`."""
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def copy(self, target: Strided, source: Strided, *, width: int, height: int) -> None:
        """Part of `Device`."""
        for place in range(height):
            ctypes.memmove(target.address + place * target.pitch, source.address + place * source.pitch, width)

    copy_now = copy

    def synchronize(self) -> None:
        """Part of `Device`."""

    def mark(self) -> Callable[[], None]:
        """Part of `Device`."""
        return self.synchronize

    def record(self, enqueue: Callable[[], None]) -> Launch | None:
        """Part of `Device`."""
        del enqueue
        return None

    def free_bytes(self) -> int:
        """Part of `Device`."""
        return self._memory
