"""What engine processes of tests open instead of a folder on its own device."""

from __future__ import annotations

from pathlib import Path

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.device import HostDevice
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_paged_engine

EMULATED = f"{__name__}:open_emulated"
BROKEN = f"{__name__}:open_nothing"


def open_emulated(folder: Path, config: EngineConfig) -> Driver:
    """The engine of a GPU, with the graph emulated on the CPU; its device's name is not looked at."""
    manifest = read_manifest(folder)
    engine, plan = open_paged_engine(folder, manifest, config, HostDevice())
    return Driver(engine, manifest, plan)


def open_nothing(folder: Path, config: EngineConfig) -> Driver:
    """A defect that nobody has thought of."""
    raise ZeroDivisionError(f"{folder.name} with {config.max_rows} rows")
