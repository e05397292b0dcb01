"""Models that are opened when a test lets them, by scripted drivers. Knows no test."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.fleet.member import Tools
from ortserve.gateway.fleet.memory import Allotment
from ortserve.gateway.fleet.opening import Opened
from ortserve.gateway.fleet.prepared import Prepared
from ortserve.gateway.fleet.spec import ModelSpec
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.prompts.model_text import ModelText
from ortserve.gateway.prompts.template import ChatTemplate
from ortserve.gateway.schema.sampling import SamplingDefaults
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.async_engine import AsyncEngine
from ortserve.runtime.errors import EngineClosedError, EngineHungError, ModelError
from ortserve.runtime.workers.restarts import Restarts
from tests.gateway.scripted import CHATML, IM_END, ScriptedDriver, make_manifest, make_tokenizer, saying
from tests.waiting import PATIENCE_S

ROOM_FOR_TWO = 70 * 2**20  # a scripted model takes 32.7 MiB, nearly all of it what any session takes
ENGINE = EngineConfig(prompt_cache="none")


@dataclass
class ScriptedOpener:
    """`broken` sources cannot be opened, `late` ones not before `gate` is set; `unknown` ones must be exported."""

    broken: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    opened: list[tuple[str, ScriptedDriver]] = field(default_factory=list)

    def find(self, spec: ModelSpec) -> Prepared | None:
        return None if spec.source in self.unknown else self._prepared(spec)

    def prepare(self, spec: ModelSpec) -> Prepared:
        self._wait(spec)
        return self._prepared(spec)

    def open(self, prepared: Prepared, allotment: Allotment) -> Opened:
        source = prepared.spec.source or ""
        self._wait(prepared.spec)
        if source in self.broken:
            raise ModelError(f"{source} is broken: export it again")
        tokenizer = make_tokenizer()
        manifest: Any = prepared.manifest
        driver: Any = ScriptedDriver(manifest, saying(f"hello from {source}"))
        self.opened.append((source, driver))
        text = ModelText(tokenizer, ChatTemplate(CHATML, {"eos_token": IM_END}))
        return Opened(
            driver,
            lambda: ModelService(
                driver, AsyncEngine(driver), text, WorkPool(),
                name=prepared.name, defaults=SamplingDefaults(), created=0,
            ),
        )  # fmt: skip

    def kill(self, source: str) -> None:
        """What an engine's death looks like from outside."""
        driver = next(driver for name, driver in reversed(self.opened) if name == source)
        driver.ended.set_exception(EngineClosedError("the engine has failed (AssertionError)"))

    def hang(self, source: str) -> None:
        """What a step that does not end looks like from outside."""
        driver = next(driver for name, driver in reversed(self.opened) if name == source)
        driver.ended.set_exception(EngineHungError("a step has not ended for 120 s"))

    def _wait(self, spec: ModelSpec) -> None:
        if spec.source in self.late:
            self.entered.release()
            assert self.gate.wait(PATIENCE_S)

    def _prepared(self, spec: ModelSpec) -> Prepared:
        tokenizer = make_tokenizer()
        eos = tokenizer.encode(IM_END, add_special_tokens=False)[0]
        return Prepared(spec, Path(), make_manifest(tokenizer.num_tokens, eos=eos, name=f"{spec.source}"))


def spec_of(source: str, **changes: Any) -> ModelSpec:
    return ModelSpec(source, engine=ENGINE, **changes)


def make_fleet(
    opener: ScriptedOpener, *specs: ModelSpec, memory: int = 2**30, delays_s: tuple[float, ...] = (0.0,), **options: Any
) -> Fleet:
    return Fleet(specs, Tools(opener, Restarts(delays_s)), memory=memory, **{"drain_s": PATIENCE_S, **options})
