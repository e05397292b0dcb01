"""Keeps recorded work of a device by its shape: run as it is the first time, recorded the second, then only launched.

Knows no model. What is recorded holds memory of the device and of its driver, so the shapes seen last are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ortserve.runtime.devices.device import Device, Launch

MAX_RECORDED = 256  # of some 300 kernels each: a few hundred kilobytes apiece
_MAX_SEEN = 4096  # shapes that ran once

Shape = TypeVar("Shape", bound=Hashable)


class Recordings(Generic[Shape]):
    """Not thread-safe."""

    def __init__(self, device: Device, *, most: int = MAX_RECORDED) -> None:
        self._device = device
        self._most = most
        self._seen: dict[Shape, None] = {}  # the oldest first
        self._launches: dict[Shape, Launch] = {}  # the one used last at the end

    def __len__(self) -> int:
        """How many shapes are recorded."""
        return len(self._launches)

    def __contains__(self, shape: object) -> bool:
        """Whether a shape is recorded."""
        return shape in self._launches

    def launch(self, shape: Shape) -> bool:
        """Launch what is recorded for a shape; False: nothing is."""
        launch = self._launches.pop(shape, None)
        if launch is None:
            return False
        self._launches[shape] = launch
        launch()
        return True

    def run(self, shape: Shape, enqueue: Callable[[], None]) -> bool:
        """Enqueue work of a shape that is not recorded; True: it took longer than the same work will from now on.

        The first run of a shape may look for the fastest kernels, which cannot be recorded; the second is recorded.
        """
        if shape not in self._seen:
            enqueue()
            if len(self._seen) == _MAX_SEEN:
                del self._seen[next(iter(self._seen))]
            self._seen[shape] = None
            return True
        launch = self._device.record(enqueue)
        if launch is None:
            enqueue()
            return False
        while len(self._launches) >= self._most:
            del self._launches[next(iter(self._launches))]
        self._launches[shape] = launch
        launch()
        return True

    def drop(self, is_stale: Callable[[Shape], bool]) -> None:
        """Forget recordings whose addresses are no longer right."""
        self._launches = {shape: launch for shape, launch in self._launches.items() if not is_stale(shape)}

    def newest(self) -> Launch | None:
        """What was launched last."""
        return next(reversed(self._launches.values()), None)
