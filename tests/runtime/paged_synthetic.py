"""Engines of layout "pages" on the synthetic model, emulated on the CPU. Knows the model's rule, no CUDA."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.device import Device, HostDevice
from ortserve.runtime.devices.session import DeviceSession
from ortserve.runtime.engine import Engine
from ortserve.runtime.grammar.constraint import Grammars
from ortserve.runtime.host.bell import Bell
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.opening import open_cache
from ortserve.runtime.pages.emulation import emulate
from ortserve.runtime.pages.kv import PagedKvStore
from ortserve.runtime.pages.plan import plan_paged_engine
from ortserve.runtime.pages.runner import PagedRunner
from ortserve.runtime.pages.sampler import DeviceSampler
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.testing import write_paged_synthetic_model
from tests.runtime.synthetic import Clock


@dataclass(frozen=True, slots=True)
class PagedSyntheticModel:
    """The model once loaded, for any number of engines."""

    folder: Path
    manifest: Manifest
    device: Device
    session: DeviceSession
    sampler: DeviceSampler

    def plan(self, config: EngineConfig, *, num_blocks: int | None = None, num_host_blocks: int = 0) -> EnginePlan:
        """A plan with exactly these block counts; None: enough for every row."""
        config = replace(config, deterministic=False, kv_memory=2**20)
        plan = plan_paged_engine(self.manifest, config, device_bytes=2**30, host_bytes=2**30)
        wanted = plan.num_rows * plan.capacity // plan.block_size if num_blocks is None else num_blocks
        return replace(plan, num_blocks=wanted, num_host_blocks=num_host_blocks)

    def engine(
        self,
        plan: EnginePlan,
        clock: Clock | None = None,
        *,
        prompt_cache: str = "none",
        cache_folder: Path | None = None,
        grammars: Grammars | None = None,
    ) -> Engine:
        """A new engine with memory and a prompt cache of its own, which may have a folder from one before."""
        store = PagedKvStore(
            self.manifest.kv, self.device, num_blocks=plan.num_blocks, num_host_blocks=plan.num_host_blocks
        )
        runner = PagedRunner(self.manifest, self.session, store, self.device, plan)
        bell = Bell()
        options = () if cache_folder is None else (("path", str(cache_folder)),)
        config = EngineConfig(prompt_cache=prompt_cache, prompt_cache_options=options)
        reuse = open_cache(self.manifest, plan, config, store, bell)
        return Engine(
            self.manifest,
            plan,
            runner,
            self.sampler,
            reuse=reuse,
            bell=bell,
            grammars=grammars,
            clock=clock or Clock(),
        )


def load_paged_synthetic_model(
    folder: Path, max_context: int, *, device: HostDevice | None = None
) -> PagedSyntheticModel:
    """Write the model into `folder` and load its emulation."""
    manifest = write_paged_synthetic_model(folder, max_context=max_context)
    device = device or HostDevice()
    session = DeviceSession(emulate(folder / manifest.graph).SerializeToString(), device)
    manifest = replace(manifest, kv=replace(manifest.kv, dtype="float32"))
    sampler = DeviceSampler(device, vocab_size=manifest.vocab_size, num_tokens=manifest.num_tokens, max_rows=128)
    return PagedSyntheticModel(folder, manifest, device, session, sampler)
