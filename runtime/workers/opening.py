"""Composes a driver from an exported folder: an engine in this process, or in one process or several of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.choice import choose_devices
from ortserve.runtime.drivers.engine_driver import EngineDriver
from ortserve.runtime.host.machine import memory_budget
from ortserve.runtime.manifest import Manifest, read_manifest
from ortserve.runtime.session import default_num_threads
from ortserve.runtime.workers.balancer import Balancer
from ortserve.runtime.workers.dividing import divide_config
from ortserve.runtime.workers.launch import OPENER, WorkerSpec
from ortserve.runtime.workers.restarts import Restarts


def open_engines(
    folder: Path,
    config: EngineConfig | None = None,
    *,
    num_engines: int | None = None,
    turn: AbstractContextManager[object] | None = None,
) -> EngineDriver:
    """As `opening.open_driver`; `config.device` may name several devices, each of which gets an engine process.

    `num_engines` is how many processes there are: 1 is one with all that an engine in this process would have, more
    divide the CPU's cores; None: the engine is a thread of this process, unless there are several devices. `turn` is
    for an engine in this process: those in their own have cores of their own. Raises as `open_driver` does, and
    `ConfigurationError` for numbers that contradict each other.
    """
    from ortserve.runtime.opening import open_driver

    config = config or EngineConfig()
    manifest = read_manifest(folder)
    devices = choose_devices(config.device, num_engines, manifest)
    if num_engines is None and len(devices) == 1:
        return open_driver(folder, replace(config, device=devices[0]), turn=turn)
    return open_workers(folder, manifest, config, devices)


def open_workers(
    folder: Path,
    manifest: Manifest,
    config: EngineConfig,
    devices: Sequence[str],
    *,
    opener: str = OPENER,
    restarts: Restarts | None = None,
) -> Balancer:
    """A process for each of the devices, even for one alone. Raises as `open_engines` does."""
    configs = divide_config(
        config,
        devices,
        num_cores=default_num_threads(),
        available_bytes=memory_budget().available,
        weight_bytes=manifest.weight_bytes,
    )
    names = [device if device.startswith("cuda") else f"cpu-{place}" for place, device in enumerate(devices)]
    specs = [WorkerSpec(name, folder, manifest, one, opener) for name, one in zip(names, configs, strict=True)]
    return Balancer(specs, restarts)
