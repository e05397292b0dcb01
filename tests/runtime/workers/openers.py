"""What engine processes of tests open instead of a folder on its own device."""

from __future__ import annotations

import ctypes
from pathlib import Path

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.device import HostDevice
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_driver, open_paged_engine
from ortserve.runtime.request import Delta

EMULATED = f"{__name__}:open_emulated"
BROKEN = f"{__name__}:open_nothing"
HANGING = f"{__name__}:open_hanging"

SLEEPS = (96, 96, 96)
HOLDS = (95, 95, 95)


def open_emulated(folder: Path, config: EngineConfig) -> Driver:
    """The engine of a GPU, with the graph emulated on the CPU; its device's name is not looked at."""
    manifest = read_manifest(folder)
    engine, plan = open_paged_engine(folder, manifest, config, HostDevice())
    return Driver(engine, manifest, plan)


def open_nothing(folder: Path, config: EngineConfig) -> Driver:
    """A defect that nobody has thought of."""
    raise ZeroDivisionError(f"{folder.name} with {config.max_rows} rows")


def open_hanging(folder: Path, config: EngineConfig) -> Driver:
    """An engine whose step does not end once it has a prompt of `SLEEPS` or `HOLDS`."""
    driver = open_driver(folder, config)
    engine = driver._engine
    step = engine.step

    def hanging() -> list[Delta]:
        prompts = {sequence.request.prompt for sequence in engine.scheduler.sequences}
        if SLEEPS in prompts:
            ctypes.CDLL(None).pause()
        if HOLDS in prompts:
            ctypes.PyDLL(None).pause()  # no other thread of Python runs
        return step()

    engine.step = hanging  # type: ignore[method-assign]
    return driver
