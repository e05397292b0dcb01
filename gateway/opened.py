"""Opens the models a server was given, divides the cores among them, and gives them back. Knows no route."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ortserve.gateway.cache_options import plugin_options
from ortserve.gateway.logs import log
from ortserve.gateway.model_options import EncoderSettings, ModelSettings
from ortserve.gateway.verified import check_verified, report_draft
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from ortserve.gateway.catalog import Catalog
    from ortserve.gateway.directory import ServedModel
    from ortserve.runtime.encoder_driver import EncoderDriver
    from ortserve.runtime.engine_driver import EngineDriver


@dataclass(frozen=True, slots=True)
class OpenedModels:
    """Running models and the folders they came from."""

    decoder: tuple[Path, EngineDriver] | None
    encoders: tuple[tuple[Path, EncoderDriver], ...]
    settings: Mapping[Path, ModelSettings]
    unverified: frozenset[Path] = frozenset()  # run although nothing proves them

    @property
    def drivers(self) -> list[EngineDriver | EncoderDriver]:
        """All of them, the one that generates first."""
        engines: list[EngineDriver | EncoderDriver] = [self.decoder[1]] if self.decoder else []
        return engines + [driver for _, driver in self.encoders]

    def close(self, *, drain_s: float = 0.0) -> None:
        """Accept nothing more and stop; all models drain at the same time."""
        closers = [threading.Thread(target=driver.close, kwargs={"drain_s": drain_s}) for driver in self.drivers]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()


def open_model(
    folder: Path, settings: ModelSettings, *, num_threads: int | None = None, draft_model: str | None = None
) -> EngineDriver:
    """Start the engines of one model; `draft_model` is the exported folder of its drafter's small model.

    Raises `ModelError`, `MemoryBudgetError`, `DeviceError` or `PluginUnusableError`.
    """
    from ortserve.runtime.workers.opening import open_engines

    if draft_model is not None:
        report_draft(Path(draft_model))
    engine, cache, drafter = settings.engine, settings.cache, settings.drafter
    driver = open_engines(
        folder,
        EngineConfig(
            device=engine.device,
            max_rows=engine.max_rows,
            max_context=engine.max_context,
            kv_memory=engine.kv_memory,
            max_step_ms=engine.max_step_ms,
            max_waiting=engine.max_waiting,
            max_waiting_tokens=engine.max_waiting_tokens,
            num_threads=num_threads or engine.threads,
            deterministic=engine.deterministic,
            prompt_cache=cache.prompt_cache,
            prompt_cache_memory=cache.prompt_cache_memory,
            prompt_cache_options=plugin_options(cache),
            drafter=drafter.drafter,
            drafter_options=drafter.drafter_option,
            draft_model=draft_model,
        ),
        num_engines=engine.engines,
    )
    for worker in driver.workers():
        log().info("memory_plan", worker=worker.name, pid=worker.pid, plan=str(worker.plan))
    if not driver.workers():
        log().info("memory_plan", plan=str(driver.plan))
    return driver


def open_models(
    chosen: Sequence[tuple[Path, ModelSettings]], encoding: EncoderSettings, *, draft_model: str | None = None
) -> OpenedModels:
    """Start every model; none stays open when one cannot be. `draft_model` is for the one that generates.

    Raises `ConfigurationError` for two models that generate, two of one name or too many threads, `UnverifiedError` for
    a model that nothing proves, and what opening one model raises.
    """
    from ortserve.runtime.encoder_driver import EncoderLimits
    from ortserve.runtime.encoder_manifest import read_any_manifest
    from ortserve.runtime.opening import open_encoder
    from ortserve.runtime.session import default_num_threads
    from ortserve.runtime.threads import divide_threads

    folders = [folder for folder, _ in chosen]
    manifests = [read_any_manifest(folder) for folder in folders]
    decoders = [folder for folder, one in zip(folders, manifests, strict=True) if isinstance(one, Manifest)]
    names = [one.entry.name or manifest.name for manifest, (_, one) in zip(manifests, chosen, strict=True)]
    _check_names(names, [str(folder) for folder in decoders])
    settings = dict(chosen)
    unverified = frozenset(
        folder for folder, one in chosen if not check_verified(folder, allow=one.engine.allow_unverified)
    )
    others = [folder for folder in folders if folder not in decoders]
    threads = divide_threads(
        default_num_threads(),
        has_engine=bool(decoders),
        has_encoders=bool(others),
        engine=settings[decoders[0]].engine.threads if decoders else None,
        encoders=encoding.encoder_threads,
    )
    turn = threading.Lock()
    with ExitStack() as stack:
        encoders = []
        for folder in others:
            limits = EncoderLimits(batch_tokens=encoding.encoder_batch_tokens)
            driver = open_encoder(folder, limits, num_threads=threads.encoders, turn=turn)
            stack.callback(driver.close)
            encoders.append((folder, driver))
        engine = None
        if decoders:
            own = settings[decoders[0]]
            engine = open_model(decoders[0], own, num_threads=threads.engine, draft_model=draft_model)
        stack.pop_all()
    if encoders:
        log().info("threads", engine=threads.engine if engine else 0, encoders=threads.encoders)
    return OpenedModels((decoders[0], engine) if engine else None, tuple(encoders), settings, unverified)


def open_catalog(models: OpenedModels, encoding: EncoderSettings, *, served_name: str | None = None) -> Catalog:
    """The services of opened models; call it inside the running event loop. `served_name` is for the first.

    Raises `ModelError`, and `ConfigurationError` for names that two models would have.
    """
    from ortserve.gateway.catalog import Catalog
    from ortserve.gateway.directory import Directory
    from ortserve.gateway.encoder_service import encoder_entry, open_encoder_service
    from ortserve.gateway.service import decoder_entry, open_service

    names = _names(models, served_name)
    entries: list[ServedModel] = []
    if models.decoder is not None:
        folder, engine = models.decoder
        entries.append(_described(models, folder, decoder_entry(engine.manifest, names[folder])))
    for folder, driver in models.encoders:
        entries.append(_described(models, folder, encoder_entry(driver.manifest, names[folder])))
    directory = Directory(tuple(entries))
    decoder = None
    if models.decoder is not None:
        folder, engine = models.decoder
        own = models.settings[folder].engine
        decoder = open_service(
            folder,
            engine,
            name=names[folder],
            defaults=own.generation_defaults,
            created=_created(folder),
            directory=directory,
            chat_template=own.chat_template,
        )
    encoders = [
        open_encoder_service(
            folder,
            driver,
            name=names[folder],
            created=_created(folder),
            directory=directory,
            accepts_token_ids=encoding.accept_token_ids,
        )
        for folder, driver in models.encoders
    ]
    return Catalog(decoder, encoders)


def _names(models: OpenedModels, served_name: str | None) -> dict[Path, str | None]:
    """What each model is called; None: its own name. The first is `served_name`, which must not be another's."""
    folders = [*([models.decoder[0]] if models.decoder else []), *(folder for folder, _ in models.encoders)]
    names = {folder: models.settings[folder].entry.name for folder in folders}
    if served_name is not None:
        if served_name in [
            names[one] or driver.manifest.name for one, driver in zip(folders[1:], models.drivers[1:], strict=True)
        ]:
            raise ConfigurationError(f"--served-name {served_name} is the name of another model: choose another")
        names[folders[0]] = served_name
    return names


def _described(models: OpenedModels, folder: Path, model: ServedModel) -> ServedModel:
    """With the further names of its table, and whether it is verified."""
    names = (*model.names, *models.settings[folder].entry.aliases)
    return replace(model, names=names, verified=folder not in models.unverified)


def _created(folder: Path) -> int:
    return int((folder / MANIFEST_NAME).stat().st_mtime)


def _check_names(names: Sequence[str], decoders: Sequence[str]) -> None:
    if len(decoders) > 1:
        raise ConfigurationError(
            f"{decoders[0]} and {decoders[1]} both generate text, and one server holds one such model:"
            " start a second server for the other"
        )
    repeated = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if repeated is not None:
        raise ConfigurationError(f"two models are called {repeated}: export one of them under another folder name")
