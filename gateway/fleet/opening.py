"""Makes models of specs: finds and exports folders, opens engines and encoders with their share of the cores.

Knows no name beside a model's own, and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ortserve.gateway.encoders.service import EncoderService
from ortserve.gateway.encoders.tokenizer import load_encoder_tokenizer
from ortserve.gateway.fleet.instance import Service
from ortserve.gateway.fleet.memory import Allotment
from ortserve.gateway.fleet.prepared import Prepared
from ortserve.gateway.fleet.spec import ModelSpec
from ortserve.gateway.logs import log
from ortserve.gateway.options.model import EngineSettings
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.prompts.model_text import load_model_text
from ortserve.gateway.served.exported import exported_folder
from ortserve.gateway.served.service import ModelService
from ortserve.gateway.served.verified import check_verified, report_draft
from ortserve.runtime.drivers.async_engine import AsyncEngine
from ortserve.runtime.encoders.manifest import read_any_manifest
from ortserve.runtime.host.heap import trim_heap
from ortserve.runtime.host.threads import Cores
from ortserve.runtime.manifest import MANIFEST_NAME, Manifest, read_manifest
from ortserve.runtime.workers.dividing import WEIGHT_FACTOR

if TYPE_CHECKING:
    from ortserve.runtime.drivers.engine_driver import EngineDriver
    from ortserve.runtime.encoders.driver import EncoderDriver

# The exported folder of a source: downloaded and exported now, as the settings say. Raises OrtserveError.
Resolve = Callable[[EngineSettings, str | None], Path]


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that runs. `serve` makes its service, in the event loop that will use it."""

    driver: EngineDriver | EncoderDriver
    serve: Callable[[], Service]

    def close(self) -> None:
        """Of one that nobody wants any more."""
        self.driver.close()


class Opener(Protocol):
    """Where a fleet's models come from."""

    def find(self, spec: ModelSpec) -> Prepared | None:
        """What is known at once; None: only `prepare` can tell. Raises `ManifestError` or `UnverifiedError`."""

    def prepare(self, spec: ModelSpec) -> Prepared:
        """Whatever it takes: downloads and exports. Called on a thread of its own. Raises `OrtserveError`."""

    def open(self, prepared: Prepared, allotment: Allotment) -> Opened:
        """Load it. Called on a thread of its own. Raises `OrtserveError`."""


class FolderOpener:
    """Models from folders; `resolve` turns everything else into one."""

    def __init__(self, resolve: Resolve, cores: Cores) -> None:
        self._resolve = resolve
        self._cores = cores

    def find(self, spec: ModelSpec) -> Prepared | None:
        """Part of `Opener`."""
        return find_prepared(spec)

    def prepare(self, spec: ModelSpec) -> Prepared:
        """Part of `Opener`."""
        folder = exported_folder(spec.source) or self._resolve(spec.options, spec.source)
        draft = spec.draft_source
        if draft is not None and exported_folder(draft) is None:
            draft = str(self._resolve(spec.options, draft))
        found = self.find(replace(spec, source=str(folder), draft_source=draft))
        assert found is not None, "both are exported now"
        return replace(found, spec=spec)

    def open(self, prepared: Prepared, allotment: Allotment) -> Opened:
        """Part of `Opener`."""
        is_engine = isinstance(prepared.manifest, Manifest)
        opened = self._open_engine(prepared, allotment) if is_engine else self._open_encoder(prepared)
        trim_heap()
        return opened

    def _open_engine(self, prepared: Prepared, allotment: Allotment) -> Opened:
        from ortserve.runtime.devices.choice import num_processes
        from ortserve.runtime.workers.opening import open_engines

        spec, threads = prepared.spec, self._cores.threads.engine
        num_engines = num_processes(spec.options.engines, spec.engine.device, read_manifest(prepared.folder))
        weights = int(prepared.manifest.weight_bytes * WEIGHT_FACTOR)
        config = replace(
            spec.engine,
            memory=allotment.planned_bytes + weights * ((num_engines or 1) - 1),  # those of other processes
            num_threads=min(spec.engine.num_threads or threads, threads),
            draft_model=None if prepared.draft_folder is None else str(prepared.draft_folder),
        )
        text = load_model_text(prepared.folder, read_manifest(prepared.folder), spec.options.chat_template)
        driver = open_engines(prepared.folder, config, num_engines=num_engines, turn=self._cores.engine_turn)
        report_plan(driver, model=prepared.name)

        def serve() -> Service:
            return ModelService(
                driver,
                AsyncEngine(driver),
                text,
                WorkPool(),
                name=prepared.name,
                defaults=prepared.sampling_defaults,
                created=prepared.created,
            )

        return Opened(driver, serve)

    def _open_encoder(self, prepared: Prepared) -> Opened:
        from ortserve.runtime.opening import open_encoder

        spec = prepared.spec
        tokenizer = load_encoder_tokenizer(prepared.folder)
        driver = open_encoder(
            prepared.folder,
            spec.encoder,
            num_threads=self._cores.threads.encoders,
            turn=self._cores.encoder_turn,
        )

        def serve() -> Service:
            return EncoderService(
                driver,
                tokenizer,
                WorkPool(),
                name=prepared.name,
                created=prepared.created,
                accepts_token_ids=spec.accepts_token_ids,
            )

        return Opened(driver, serve)


def find_prepared(spec: ModelSpec) -> Prepared | None:
    """What is known of a model at once; None: it must be exported first.

    Raises `ManifestError` or `UnverifiedError`.
    """
    folder = exported_folder(spec.source)
    if folder is None:
        return None
    manifest = read_any_manifest(folder)
    verified = check_verified(folder, allow=spec.options.allow_unverified)
    created = int((folder / MANIFEST_NAME).stat().st_mtime)
    if spec.draft_source is None or not isinstance(manifest, Manifest):
        return Prepared(spec, folder, manifest, created, verified)
    draft = exported_folder(spec.draft_source)
    if draft is None:
        return None
    report_draft(draft)
    return Prepared(spec, folder, manifest, created, verified, draft, read_manifest(draft))


def report_plan(driver: EngineDriver, **fields: object) -> None:
    """Log the memory plan, or those of all its processes."""
    for worker in driver.workers():
        log().info("memory_plan", **fields, worker=worker.name, pid=worker.pid, plan=str(worker.plan))
    if not driver.workers():
        log().info("memory_plan", **fields, plan=str(driver.plan))
