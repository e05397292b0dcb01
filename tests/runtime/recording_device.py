"""The processor as a device that records: what is launched again finds addresses and shapes as they were recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ortserve.runtime.devices.device import HostDevice, Launch
from ortserve.runtime.devices.session import DeviceBinding


class NotedBinding(DeviceBinding):
    """Remembers how each of its inputs and outputs was bound last."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.bound: dict[str, tuple[str, tuple[Any, ...]]] = {}

    def bind_input(self, name: str, *where: Any) -> None:
        super().bind_input(name, *where)
        self.bound[name] = ("bind_input", where)

    def bind_output(self, name: str, *where: Any) -> None:
        super().bind_output(name, *where)
        self.bound[name] = ("bind_output", where)

    def bind_host_input(self, name: str, array: Any) -> None:
        super().bind_host_input(name, array)
        self.bound[name] = ("bind_host_input", (array.copy(),))


class RecordingDevice(HostDevice):
    """As a CUDA graph does, launches keep addresses, shapes and host inputs, and read memory anew."""

    def __init__(self) -> None:
        super().__init__()
        self.num_recorded = 0
        self.num_launched = 0

    def record(self, enqueue: Callable[[], None]) -> Launch | None:
        binding: NotedBinding = enqueue.__self__  # type: ignore[attr-defined]
        bound = dict(binding.bound)
        self.num_recorded += 1

        def launch() -> None:
            for name, (method, where) in bound.items():
                getattr(super(NotedBinding, binding), method)(name, *where)
            binding.run()
            self.num_launched += 1

        return launch
