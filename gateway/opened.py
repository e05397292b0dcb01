"""Opens the models a server was given, divides the cores among them, and gives them back. Knows no route."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ortserve.gateway.cache_options import plugin_options
from ortserve.gateway.drafter_options import drafter_options
from ortserve.gateway.logs import log
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from ortserve.gateway.catalog import Catalog
    from ortserve.gateway.directory import ServedModel
    from ortserve.runtime.driver import Driver
    from ortserve.runtime.encoder_driver import EncoderDriver


@dataclass(frozen=True, slots=True)
class OpenedModels:
    """Running models and the folders they came from."""

    decoder: tuple[Path, Driver] | None
    encoders: tuple[tuple[Path, EncoderDriver], ...]

    @property
    def drivers(self) -> list[Driver | EncoderDriver]:
        """All of them, the one that generates first."""
        engines: list[Driver | EncoderDriver] = [self.decoder[1]] if self.decoder else []
        return engines + [driver for _, driver in self.encoders]

    def close(self, *, drain_s: float = 0.0) -> None:
        """Accept nothing more and stop; all models drain at the same time."""
        closers = [threading.Thread(target=driver.close, kwargs={"drain_s": drain_s}) for driver in self.drivers]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()


def open_model(
    folder: Path, arguments: argparse.Namespace, *, num_threads: int | None = None, draft_model: str | None = None
) -> Driver:
    """Start one engine; `draft_model` is the exported folder of its drafter's small model.

    Raises `ModelError`, `MemoryBudgetError`, `DeviceError` or `PluginUnusableError`.
    """
    from ortserve.runtime.opening import open_driver

    driver = open_driver(
        folder,
        EngineConfig(
            device=arguments.device,
            max_rows=arguments.max_rows,
            max_context=arguments.max_context,
            kv_memory=arguments.kv_memory,
            max_step_ms=arguments.max_step_ms,
            num_threads=num_threads or arguments.threads,
            deterministic=arguments.deterministic,
            prompt_cache=arguments.prompt_cache,
            prompt_cache_memory=arguments.prompt_cache_memory,
            prompt_cache_options=plugin_options(arguments),
            drafter=arguments.drafter,
            drafter_options=drafter_options(arguments),
            draft_model=draft_model,
        ),
    )
    log().info("memory_plan", plan=str(driver.plan))
    return driver


def open_models(
    folders: Sequence[Path], arguments: argparse.Namespace, *, draft_model: str | None = None
) -> OpenedModels:
    """Start every model; none stays open when one cannot be. `draft_model` is for the one that generates.

    Raises `ConfigurationError` for two models that generate, two of one name or too many threads, and what opening one
    model raises.
    """
    from ortserve.runtime.encoder_driver import EncoderLimits
    from ortserve.runtime.encoder_manifest import read_any_manifest
    from ortserve.runtime.opening import open_encoder
    from ortserve.runtime.session import default_num_threads
    from ortserve.runtime.threads import divide_threads

    manifests = [read_any_manifest(folder) for folder in folders]
    decoders = [folder for folder, one in zip(folders, manifests, strict=True) if isinstance(one, Manifest)]
    _check_names([manifest.name for manifest in manifests], [str(folder) for folder in decoders])
    others = [folder for folder in folders if folder not in decoders]
    threads = divide_threads(
        default_num_threads(),
        has_engine=bool(decoders),
        has_encoders=bool(others),
        engine=arguments.threads,
        encoders=arguments.encoder_threads,
    )
    turn = threading.Lock()
    with ExitStack() as stack:
        encoders = []
        for folder in others:
            limits = EncoderLimits(batch_tokens=arguments.encoder_batch_tokens)
            driver = open_encoder(folder, limits, num_threads=threads.encoders, turn=turn)
            stack.callback(driver.close)
            encoders.append((folder, driver))
        engine = None
        if decoders:
            engine = open_model(decoders[0], arguments, num_threads=threads.engine, draft_model=draft_model)
        stack.pop_all()
    if encoders:
        log().info("threads", engine=threads.engine if engine else 0, encoders=threads.encoders)
    return OpenedModels((decoders[0], engine) if engine else None, tuple(encoders))


def open_catalog(models: OpenedModels, arguments: argparse.Namespace) -> Catalog:
    """The services of opened models; call it inside the running event loop. Raises `ModelError`."""
    from ortserve.gateway.catalog import Catalog
    from ortserve.gateway.directory import Directory
    from ortserve.gateway.encoder_service import encoder_entry, open_encoder_service
    from ortserve.gateway.service import decoder_entry, open_service

    name = _first_name(models, arguments.served_name)
    entries: list[ServedModel] = []
    if models.decoder is not None:
        entries.append(decoder_entry(models.decoder[1].manifest, name))
    for _, driver in models.encoders:
        entries.append(encoder_entry(driver.manifest, None if entries else name))
    directory = Directory(tuple(entries))
    decoder = None
    if models.decoder is not None:
        folder, engine = models.decoder
        defaults, created = arguments.generation_defaults, _created(folder)
        decoder = open_service(
            folder,
            engine,
            name=name,
            defaults=defaults,
            created=created,
            directory=directory,
            chat_template=arguments.chat_template,
        )
    encoders = [
        open_encoder_service(
            folder,
            driver,
            name=name if place == 0 and decoder is None else None,
            created=_created(folder),
            directory=directory,
            accepts_token_ids=arguments.accept_token_ids,
        )
        for place, (folder, driver) in enumerate(models.encoders)
    ]
    return Catalog(decoder, encoders)


def _first_name(models: OpenedModels, served_name: str | None) -> str | None:
    """`served_name`, which must not be another model's own."""
    if served_name in [driver.manifest.name for driver in models.drivers[1:]]:
        raise ConfigurationError(f"--served-name {served_name} is the name of another model: choose another")
    return served_name


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
