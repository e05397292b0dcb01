"""One model of a fleet through its life: prepared, loaded, used, started again, let go. Knows no other model.

Belongs to the event loop. Whoever changes one holds its lock; its fleet decides when and with how much memory.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal, TypeAlias

from ortserve.gateway.directory import ServedModel
from ortserve.gateway.fleet.daemon import in_daemon
from ortserve.gateway.fleet.instance import Instance
from ortserve.gateway.fleet.memory import Allotment
from ortserve.gateway.fleet.opening import Opened, Opener
from ortserve.gateway.fleet.prepared import Prepared
from ortserve.gateway.fleet.spec import ModelSpec
from ortserve.gateway.logs import log
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.errors import EngineClosedError, EngineHungError
from ortserve.runtime.workers.restarts import Restarts

Phase = Literal["unloaded", "exporting", "loading", "warming", "ready", "draining", "restarting", "failed"]
Warm: TypeAlias = Callable[[ModelService, Path], Awaitable[None]]  # raises OrtserveError


@dataclass(frozen=True, slots=True)
class Tools:
    """What all members of a fleet are made with."""

    opener: Opener
    restarts: Restarts
    warm: Warm | None = None


class Member:
    """`phase` since `since_s` (monotonic clock); `error` is why it is not what it should be."""

    def __init__(self, spec: ModelSpec, tools: Tools) -> None:
        """Raises `OrtserveError` for a folder whose manifest cannot be read."""
        self.spec = spec
        self.prepared: Prepared | None = tools.opener.find(spec)
        self.phase: Phase = "unloaded"
        self.since_s = monotonic()
        self.error: str | None = None
        self.instance: Instance | None = None  # while `phase` is ready or draining
        self.allotment: Allotment | None = None  # what is set aside for it
        self.is_on_demand = True  # a request for it may load it
        self.is_moving = False  # another model is about to take its names over
        self.load_s: float | None = None  # how long it took to load, the last time
        self.num_restarts = 0
        self.is_hung = False  # a thread of this process does not come back, and its memory with it
        self.lock = asyncio.Lock()
        self.changed = asyncio.Event()  # set, and replaced, whenever `phase` changes
        self._tools = tools
        self._failures_s: list[float] = []
        self._watching: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """As it is shown."""
        return self.entry.names[0]

    @property
    def entry(self) -> ServedModel:
        """Its names and what it does; before it has been exported, the names that it will have most likely."""
        if self.prepared is not None:
            return self.prepared.entry
        return self.spec.entry(self.spec.provisional_name, "generate")

    @property
    def generates(self) -> bool:
        """Not an encoder, as far as is known before it has been exported."""
        return self.entry.task == "generate"

    @property
    def num_bytes(self) -> int:
        """Memory set aside for it."""
        return 0 if self.allotment is None else self.allotment.num_bytes

    @property
    def is_idle(self) -> bool:
        """Loaded, used by nobody, and nothing is about to happen to it."""
        instance = self.instance
        return self.phase == "ready" and instance is not None and not instance.num_users and not self.lock.locked()

    def turn_to(self, phase: Phase, error: str | None = None) -> None:
        """Change what it is, and wake those who wait for that."""
        self.phase, self.error, self.since_s = phase, error, monotonic()
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def prepare(self) -> Prepared:
        """Its folder and manifest. Raises `OrtserveError`; it has failed then."""
        if self.prepared is None:
            self.turn_to("exporting")
            with self._failing():
                self.prepared = await in_daemon(lambda: self._tools.opener.prepare(self.spec))
        return self.prepared

    async def open(self, allotment: Allotment) -> None:
        """Load it, with memory that is set aside for it. Raises `OrtserveError`; it has failed then."""
        self.allotment = allotment
        self.turn_to("loading")
        began = monotonic()
        with self._failing():
            self.instance = await self._opened()
        self.load_s = monotonic() - began
        self.turn_to("ready")
        log().info("model_loaded", model=self.name, seconds=round(self.load_s, 2), bytes=self.num_bytes)
        self._watch(self.instance)

    async def close(self, drain_s: float) -> None:
        """Let go of it, after giving its users up to `drain_s` seconds."""
        self.stop_restarting()
        instance = self.instance
        if instance is not None:
            self.turn_to("draining")
            await instance.close(drain_s)
            log().info("model_unloaded", model=self.name)
        self.instance = self.allotment = None
        self.turn_to("unloaded")

    def stop_restarting(self) -> None:
        """Whatever happens to it next, its engine is not started again."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def check_thread(self) -> None:
        """Raise `EngineHungError` when its engine hangs: its memory is not free, and another one would come on top."""
        if self.is_hung:
            raise EngineHungError(f"{self.name}: {self.error}")

    def _failing(self) -> _Failing:
        return _Failing(self)

    async def _opened(self) -> Instance:
        assert self.prepared is not None
        assert self.allotment is not None
        prepared, allotment, tools = self.prepared, self.allotment, self._tools
        opened = await in_daemon(lambda: tools.opener.open(prepared, allotment), drop=Opened.close)
        try:
            service = opened.serve()
            warm = prepared.spec.warm
            if warm is not None and tools.warm is not None and isinstance(service, ModelService):
                self.turn_to("warming")
                await tools.warm(service, warm)
        except BaseException:
            await in_daemon(opened.close)
            raise
        return Instance(service)

    def _watch(self, instance: Instance) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._revive(instance))

    async def _revive(self, instance: Instance) -> None:
        """Wait for the end of an engine; start another one if nobody has wanted that, as often as is allowed."""
        try:
            await asyncio.shield(asyncio.wrap_future(instance.service.driver.ended))
        except EngineHungError as error:
            self._give_up(instance, str(error))
            return
        except EngineClosedError as error:
            reason = str(error)
        else:  # somebody has wanted it
            return
        async with self.lock:
            if self.instance is not instance:
                return
            self.instance = None
            instance.service.pool.close()
            del instance
            self.turn_to("restarting", reason)
            await in_daemon(gc.collect)  # a traceback may still hold what the engine computed with
            while True:
                now_s = monotonic()
                self._failures_s.append(now_s)
                delay_s = self._tools.restarts.delay_after(self._failures_s, now_s)
                if delay_s is None:
                    self.allotment = None
                    self.turn_to("failed", reason)
                    log().error("model_failed", model=self.name, reason=reason, restarts=self.num_restarts)
                    return
                log().error("model_restarting", model=self.name, reason=reason, delay_s=delay_s)
                self.turn_to("restarting", reason)
                await asyncio.sleep(delay_s)
                self.num_restarts += 1
                try:
                    self.instance = await self._opened()
                    break
                except Exception as error:  # whatever it is: the next attempt, or none, is all there is to do
                    reason = str(error) or type(error).__name__
            self.turn_to("ready")
            log().info("model_restarted", model=self.name, seconds=round(monotonic() - now_s, 2))
            self._watch(self.instance)

    def _give_up(self, instance: Instance, reason: str) -> None:
        """Only a new process helps: what is set aside for the model stays so, and nobody waits for it."""
        self.is_hung = True
        if self.instance is instance:
            self.instance = None
        self.turn_to("failed", f"{reason}: this process has to be restarted")


class _Failing:
    """What is raised inside makes the member fail, and let go of its memory; a cancelled change leaves it unloaded."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        member = self._member
        member.instance = member.allotment = None
        if isinstance(error, Exception):
            member.turn_to("failed", str(error) or type(error).__name__)  # said by whoever has wanted it loaded
        else:
            member.turn_to("unloaded")
