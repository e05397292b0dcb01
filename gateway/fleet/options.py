"""What settings mean for models: specs, and how engines are opened. Knows no route and opens nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ortserve.gateway.fleet.spec import ModelSpec, check_engines
from ortserve.gateway.options.cache import plugin_options
from ortserve.gateway.options.drafter import draft_source
from ortserve.gateway.served.exported import exported_folder
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.encoders.driver import EncoderLimits
from ortserve.runtime.encoders.manifest import EncoderManifest, read_any_manifest
from ortserve.runtime.errors import ConfigurationError

if TYPE_CHECKING:
    from ortserve.gateway.options.model import ModelSettings
    from ortserve.gateway.options.settings import Settings


@dataclass(frozen=True, slots=True)
class _Found:
    """A model that was named, and whether it generates."""

    settings: ModelSettings
    generates: bool


def engine_config(settings: ModelSettings) -> EngineConfig:
    """How an engine is opened. Raises `ConfigurationError` and `PluginOptionsError`."""
    engine, cache, drafter = settings.engine, settings.cache, settings.drafter
    return EngineConfig(
        device=engine.device,
        max_rows=engine.max_rows,
        max_context=engine.max_context,
        kv_memory=engine.kv_memory,
        max_step_ms=engine.max_step_ms,
        step_limit_s=engine.step_limit,
        max_waiting=engine.max_waiting,
        max_waiting_tokens=engine.max_waiting_tokens,
        num_threads=engine.threads,
        deterministic=engine.deterministic,
        prompt_cache=cache.prompt_cache,
        prompt_cache_memory=cache.prompt_cache_memory,
        prompt_cache_options=plugin_options(cache),
        drafter=drafter.drafter,
        drafter_options=drafter.drafter_option,
    )


def model_spec(settings: Settings, one: ModelSettings) -> ModelSpec:
    """One of a server's models."""
    entry = one.entry
    return ModelSpec(
        entry.model,
        name=entry.name,
        aliases=entry.aliases,
        preload=entry.preload,
        pinned=entry.pinned,
        options=one.engine,
        engine=engine_config(one),
        draft_source=draft_source(one.drafter, entry.model),
        encoder=EncoderLimits(batch_tokens=settings.encoders.encoder_batch_tokens, run_limit_s=one.engine.step_limit),
        accepts_token_ids=settings.encoders.accept_token_ids,
    )


def new_spec(settings: Settings, source: str) -> ModelSpec:
    """One that nobody has named at the start, with the options that hold for all."""
    defaults = settings.defaults
    return model_spec(settings, replace(defaults, entry=replace(defaults.entry, model=source)))


def model_specs(settings: Settings) -> list[ModelSpec]:
    """A server's models, those that generate first. Raises `ConfigurationError` and `ManifestError`."""
    found = sorted((_Found(one, _generates(one.entry.model)) for one in settings.models), key=_is_encoder)
    specs = [model_spec(settings, one.settings) for one in found]
    check_engines(((spec, one.generates) for spec, one in zip(specs, found, strict=True)), leave_cores=True)
    if settings.fleet.load_on_demand:
        specs[1:] = [replace(spec, preload=False) for spec in specs[1:]]
    if settings.server.served_name is not None:
        specs[0] = replace(specs[0], name=settings.server.served_name)
    if settings.server.warm is not None:
        if not found[0].generates:
            raise ConfigurationError("--warm computes prompts, and no model here generates: leave it out")
        specs[0] = replace(specs[0], warm=settings.server.warm)
    return specs


def generates(spec: ModelSpec) -> bool:
    """Not an encoder, as far as can be told before it is exported. Raises `ManifestError`."""
    return _generates(spec.source)


def _generates(source: str | None) -> bool:
    folder = exported_folder(source)  # encoders are always exported beforehand
    return folder is None or not isinstance(read_any_manifest(folder), EncoderManifest)


def _is_encoder(found: _Found) -> bool:
    return not found.generates
