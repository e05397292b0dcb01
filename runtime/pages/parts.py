"""Composes the parts of an engine that compute on a device: session, memory plan, KV pages, runner, sampler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.device import Device
from ortserve.runtime.devices.session import DeviceSession
from ortserve.runtime.host.machine import memory_budget
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.pages.emulation import emulate
from ortserve.runtime.pages.kv import PagedKvStore
from ortserve.runtime.pages.plan import plan_paged_engine
from ortserve.runtime.pages.runner import PagedRunner, most_logit_rows
from ortserve.runtime.pages.sampler import DeviceSampler
from ortserve.runtime.pages.single import spell_for_one_token
from ortserve.runtime.plan import EnginePlan

ROOM_FOR_MORE = 8  # times the weights: then matrices in codes are held three times, for the kernels that suit


@dataclass(frozen=True, slots=True)
class PagedParts:
    """What an engine needs from its device."""

    plan: EnginePlan
    store: PagedKvStore
    runner: PagedRunner
    sampler: DeviceSampler


def open_paged_parts(folder: Path, manifest: Manifest, config: EngineConfig, device: Device) -> PagedParts:
    """Load the graph, then fit pages into what it leaves free. On a `HostDevice` the graph is emulated, in float32.

    Raises `ModelError`, `DeviceError` or `MemoryBudgetError`.
    """
    graph: Path | bytes = folder / manifest.graph
    if device.kind == "cpu":
        graph = emulate(folder / manifest.graph).SerializeToString()
        manifest = replace(manifest, kv=replace(manifest.kv, dtype="float32"))
    session = DeviceSession(graph, device)
    single = many = None
    if manifest.has_codes and device.free_bytes() >= ROOM_FOR_MORE * manifest.weight_bytes:
        for_one = graph if isinstance(graph, bytes) else spell_for_one_token(graph)
        single = DeviceSession(for_one, device, weights=folder)
        many = DeviceSession(graph, device, multiplies_codes=False)
    plan = plan_paged_engine(
        manifest, config, device_bytes=device.free_bytes(), host_bytes=config.free_of(memory_budget().available)
    )
    store = PagedKvStore(manifest.kv, device, num_blocks=plan.num_blocks, num_host_blocks=plan.num_host_blocks)
    runner = PagedRunner(manifest, session, store, device, plan, single=single, many=many)
    sampler = DeviceSampler(
        device, vocab_size=manifest.vocab_size, num_tokens=manifest.num_tokens, max_rows=most_logit_rows(plan)
    )
    return PagedParts(plan, store, runner, sampler)
