"""Composes a running engine, or encoder, from an exported folder: manifest, session, memory plan, KV store, driver.

The one place in the runtime that knows all parts; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import astuple, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import monotonic, time
from typing import cast

import structlog

from ortserve.plugins.api import BlockIo, PluginContext, PromptCache
from ortserve.plugins.drafting import Drafter
from ortserve.plugins.registry import DRAFTERS, PROMPT_CACHES, PluginError, load
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.choice import choose_device
from ortserve.runtime.devices.device import Device
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.encoders.driver import EncoderDriver, EncoderLimits
from ortserve.runtime.encoders.encoder import Encoder
from ortserve.runtime.encoders.manifest import read_encoder_manifest
from ortserve.runtime.engine import Engine
from ortserve.runtime.errors import DeviceError, PluginUnusableError
from ortserve.runtime.grammar.guidance import open_grammars
from ortserve.runtime.host.bell import Bell
from ortserve.runtime.host.machine import memory_budget
from ortserve.runtime.host.turn import Turn
from ortserve.runtime.manifest import Manifest, read_manifest
from ortserve.runtime.new_runner import new_runner
from ortserve.runtime.pages.parts import open_paged_parts
from ortserve.runtime.plan import NO_DRAFTER, EnginePlan, plan_engine
from ortserve.runtime.sampling.sampler import Sampler
from ortserve.runtime.scheduling.blocks import BlockPool
from ortserve.runtime.scheduling.cache_blocks import CacheBlocks
from ortserve.runtime.scheduling.page_reuse import new_page_reuse
from ortserve.runtime.scheduling.reuse import Reuse, new_reuse
from ortserve.runtime.session import check_int8_kernels, require_version
from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.slots.kv_kernels import check_exact_kv
from ortserve.runtime.slots.product_kernels import check_exact_products
from ortserve.runtime.slots.runner import load_session
from ortserve.runtime.speculation.drafting import Drafting
from ortserve.runtime.speculation.small_model import LoadedDraft, load_draft
from ortserve.runtime.speculation.words import read_words

EXACT_PRECISIONS = ("int8", "int4", "fp32")  # on a CPU; what others compute depends on the rows beside


def open_driver(
    folder: Path, config: EngineConfig | None = None, *, turn: AbstractContextManager[object] | None = None
) -> Driver:
    """Load `folder` (manifest.json and its graph) and start its engine.

    `turn` is held during every run on the CPU: models that share cores share one.

    Raises `ManifestError` or `ModelError` for an unusable folder, `DeviceError` for an unfit machine or runtime,
    `MemoryBudgetError` when rows and context do not fit.
    """
    config = config or EngineConfig()
    manifest = read_manifest(folder)
    engine, plan = open_engine(folder, manifest, config, turn)
    return Driver(engine, manifest, plan, step_limit_s=config.step_limit_s)


def open_encoder(
    folder: Path,
    limits: EncoderLimits | None = None,
    *,
    num_threads: int | None = None,
    turn: AbstractContextManager[object] | None = None,
) -> EncoderDriver:
    """Load an exported encoder and start its thread; `turn` is held during every run.

    Raises `ManifestError` or `ModelError` for an unusable folder, `DeviceError` for an unfit machine or runtime.
    """
    encoder = Encoder(folder, read_encoder_manifest(folder), num_threads=num_threads)
    return EncoderDriver(encoder, limits, turn=turn)


def open_engine(
    folder: Path, manifest: Manifest, config: EngineConfig, turn: AbstractContextManager[object] | None = None
) -> tuple[Engine, EnginePlan]:
    """The engine without a thread, for tests and benchmarks. Raises as `open_driver` does."""
    device = choose_device(config.device, manifest)
    if config.deterministic and manifest.padded is not None:
        raise DeviceError(
            f"--deterministic is for models that ortserve exported: {manifest.name} was imported, and its rows are"
            " padded to the longest beside them, which moves the last bits of sums"
        )
    if config.deterministic and (device is not None or manifest.precision not in EXACT_PRECISIONS):
        raise DeviceError(
            f"--deterministic needs a model in int8, int4 or fp32, exported for the CPU: the products of"
            f" {manifest.name} ({manifest.precision}{' on a GPU' if device else ''}) depend in their last bits on the"
            " rows beside them"
        )
    require_version(manifest.min_onnxruntime)
    if device is not None:
        return open_paged_engine(folder, manifest, config, device)
    if manifest.precision == "int8":
        check_int8_kernels()
    if config.deterministic and manifest.kv.is_quantized:
        check_exact_kv(manifest, num_threads=config.num_threads)
    if config.deterministic and manifest.has_codes:
        check_exact_products(manifest, num_threads=config.num_threads)
    turn = turn or Turn()  # the drafter's small model waits while the served one runs, and the other way round
    session = load_session(folder, manifest, num_threads=config.num_threads, turn=turn)
    draft = None
    if config.draft_model is not None and config.drafter != NO_DRAFTER:
        draft = load_draft(Path(config.draft_model), folder, manifest, num_threads=config.num_threads, turn=turn)
    plan = plan_engine(
        manifest,
        config,
        available_bytes=config.free_of(memory_budget().available),
        draft=None if draft is None else draft.manifest.kv,
    )
    store = SlotKvStore(
        manifest.kv, num_rows=plan.num_rows, capacity=plan.capacity, num_host_blocks=plan.num_host_blocks
    )
    runner = new_runner(
        manifest, session, store, max_logit_rows=plan.max_logit_rows, deterministic=config.deterministic
    )
    sampler = Sampler(manifest.num_tokens, num_threads=config.num_threads)
    bell = Bell()
    reuse = open_cache(manifest, plan, config, store, bell)
    drafting = open_drafter(manifest, plan, config, store, draft, folder=folder)
    grammars = open_grammars(folder, manifest, num_threads=config.num_threads)
    engine = Engine(manifest, plan, runner, sampler, reuse=reuse, bell=bell, drafting=drafting, grammars=grammars)
    return engine, plan


def open_paged_engine(
    folder: Path, manifest: Manifest, config: EngineConfig, device: Device
) -> tuple[Engine, EnginePlan]:
    """The engine of a model in layout "pages" on a device. Raises as `open_driver` does."""
    if config.draft_model is not None and config.drafter != NO_DRAFTER:
        raise DeviceError("a draft model cannot run beside a model on CUDA yet: choose another --drafter, or none")
    parts = open_paged_parts(folder, manifest, config, device)
    bell = Bell()
    reuse = open_cache(manifest, parts.plan, config, parts.store, bell)
    drafting = open_drafter(manifest, parts.plan, config, parts.store, folder=folder)
    grammars = open_grammars(folder, manifest, num_threads=config.num_threads)
    engine = Engine(
        manifest,
        parts.plan,
        parts.runner,
        parts.sampler,
        reuse=reuse,
        bell=bell,
        drafting=drafting,
        grammars=grammars,
    )
    return engine, parts.plan


def open_cache(manifest: Manifest, plan: EnginePlan, config: EngineConfig, store: BlockIo, bell: Bell) -> Reuse:
    """The prompt cache that the configuration names. Raises `PluginUnusableError` when it cannot be made."""
    factory = _load(PROMPT_CACHES, config.prompt_cache)
    context = partial(_context, manifest, plan, store, dict(config.prompt_cache_options))

    def make(blocks: CacheBlocks) -> PromptCache:
        return cast(PromptCache, factory(context(blocks=blocks, wake=bell.ring)))

    try:
        reuse = (new_page_reuse if plan.shares_blocks else new_reuse)(plan, make)
    except (Exception, SystemExit) as error:  # a stranger's constructor may raise anything
        raise PluginUnusableError(f"the prompt cache {config.prompt_cache} cannot start ({error})") from error
    _check_methods(reuse.cache, PromptCache, f"the prompt cache {config.prompt_cache}")
    reuse.name = config.prompt_cache
    return reuse


def open_drafter(
    manifest: Manifest,
    plan: EnginePlan,
    config: EngineConfig,
    store: BlockIo,
    draft: LoadedDraft | None = None,
    *,
    folder: Path,
) -> Drafting | None:
    """The drafter that the configuration names, None for none. Raises `PluginUnusableError` when it cannot be made."""
    if config.drafter == NO_DRAFTER:
        return None
    factory = _load(DRAFTERS, config.drafter)
    # A drafter guesses tokens: it gets no blocks, and nobody waits for its call.
    context = _context(
        manifest, plan, store, dict(config.drafter_options), blocks=CacheBlocks(BlockPool(0)), wake=lambda: None
    )
    context = replace(
        context,
        byte_budget=plan.drafter_keep_bytes,
        load_words=partial(read_words, folder, manifest.num_tokens),
    )
    if draft is not None:
        context = replace(context, load_model=partial(draft.open, plan))
    try:
        drafter = cast(Drafter, factory(context))
    except (Exception, SystemExit) as error:  # a stranger's constructor may raise anything
        raise PluginUnusableError(f"the drafter {config.drafter} cannot start ({error})") from error
    _check_methods(drafter, Drafter, f"the drafter {config.drafter}")
    return Drafting(drafter, vocab_size=manifest.num_tokens, name=config.drafter)


def _check_methods(plugin: object, contract: type, whose: str) -> None:
    """It has every method that will be called. Raises `PluginUnusableError`."""
    needed = [name for name, method in vars(contract).items() if callable(method) and not name.startswith("_")]
    missing = [name for name in needed if not callable(getattr(plugin, name, None))]
    if missing:
        what = f"is {type(plugin).__name__}, which has no {' and no '.join(missing)}"
        raise PluginUnusableError(f"{whose} {what}: report it to its author")


def _load(group: str, name: str) -> Callable[..., object]:
    try:
        return load(group, name)
    except PluginError as error:
        raise PluginUnusableError(str(error)) from error


def _context(
    manifest: Manifest,
    plan: EnginePlan,
    store: BlockIo,
    options: Mapping[str, str],
    *,
    blocks: CacheBlocks,
    wake: Callable[[], None],
) -> PluginContext:
    log = structlog.get_logger("ortserve.plugins")
    return PluginContext(
        options=options,
        block_size=plan.block_size,
        bytes_per_block=plan.bytes_per_block,
        vocab_size=manifest.num_tokens,
        max_context=plan.max_context,
        eos_token_ids=manifest.eos_token_ids,
        digest=_layout_digest(manifest, plan),
        byte_budget=plan.cache_bytes,
        clock=monotonic,
        wall_clock=time,
        blocks=blocks,
        io=store,
        wake=wake,
        warn=lambda line: log.warning("plugin", message=line),
    )


def _layout_digest(manifest: Manifest, plan: EnginePlan) -> str:
    """What makes two blocks interchangeable: model, layout, dtype, block size, and how exactly they were computed."""
    facts = (manifest.digest, astuple(manifest.kv), plan.block_size, plan.deterministic)
    return sha256(repr(facts).encode()).hexdigest()
