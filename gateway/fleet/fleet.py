"""The models of one server: the only one who changes which there are. Knows no HTTP route and no wire format.

Belongs to the event loop. Readers get values: `directory` and `states` are copies of one moment, and a request that has
been given a model's service keeps it (`Instance.hold`) until the request is over, whatever becomes of the model.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from ortserve.gateway.directory import Directory, Task
from ortserve.gateway.encoders.service import EncoderService
from ortserve.gateway.errors import ApiError, missing_parameter, unavailable
from ortserve.gateway.exchange import Exchange
from ortserve.gateway.fleet.budget import Budget
from ortserve.gateway.fleet.instance import Instance, Service
from ortserve.gateway.fleet.member import Member, Tools
from ortserve.gateway.fleet.memory import Allotment
from ortserve.gateway.fleet.refusing import check_wait, not_yet
from ortserve.gateway.fleet.roster import roster_of
from ortserve.gateway.fleet.spec import ModelSpec, check_engines
from ortserve.gateway.fleet.state import ModelState, state_of
from ortserve.gateway.logs import log
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.errors import ConfigurationError, MemoryBudgetError, OrtserveError

HOLD_S = 30.0  # how long a request waits for a model that is on its way
MAX_HELD = 256  # requests that wait so
ALL_TASKS: tuple[Task, ...] = ("generate", "embeddings", "rerank")


class Fleet:
    """Models by name. Changes of one model come one after another; those of several may run side by side."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        tools: Tools,
        *,
        memory: int,
        drain_s: float = 30.0,
        hold_s: float = HOLD_S,
    ) -> None:
        """`memory`: bytes for all models together; `drain_s`: how long one that is let go may finish its requests.

        Raises `ConfigurationError` for two models of one name, `ManifestError` for an unreadable folder.
        """
        self.is_started = False  # all that are to be there from the start have been loaded
        self._tools = tools
        self._drain_s = drain_s
        self._hold_s = hold_s
        self._num_held = 0
        self._is_closing = False
        self.is_leaving = False  # the server ends soon: readiness fails, and requests are still taken
        self._loads: dict[Member, asyncio.Task[None]] = {}
        self._members = [Member(spec, tools) for spec in specs]
        self._budget = Budget(memory, self._members)
        self._roster = roster_of(self._members)
        kinds = {member.generates for member in self._members}
        self._leaves_cores = len(kinds) == 2  # the cores were divided among both, and stay so

    # What there is.

    @property
    def directory(self) -> Directory:
        """Every name now, and what its model does."""
        return self._roster.directory

    def states(self) -> list[ModelState]:
        """All models, those that generate first."""
        return [self._state_of(member) for member in self._roster.members]

    @property
    def memory(self) -> int:
        """Bytes for all models together."""
        return self._budget.memory

    @property
    def num_bytes(self) -> int:
        """Set aside for models."""
        return self._budget.num_bytes

    @property
    def is_closing(self) -> bool:
        """The server ends."""
        return self._is_closing

    def state(self, name: str) -> ModelState:
        """The model of that name. Raises `ApiError` (404)."""
        return self._state_of(self._find(name, *ALL_TASKS))

    def _state_of(self, member: Member) -> ModelState:
        return state_of(member, self._roster.names(member))

    # Who asks for what.

    async def generator(self, name: str | None, exchange: Exchange) -> ModelService:
        """The model of that name (None: the first that generates), for as long as the exchange lasts.

        Raises `ApiError`: 404 for an unknown name, 400 for one that does something else, 503 for one that is not there.
        """
        if name is None:  # an empty one is a wrong one: it has not been checked against what the key may use
            name = self.directory.default("generate")
        if name is None:
            self._refuse_while_starting()
            raise missing_parameter("model")
        service = (await self._hold(name, exchange, "generate")).service
        assert isinstance(service, ModelService)
        return service

    def ready(self, name: str) -> Service | None:
        """What serves the model of that name, if it is there now; nobody holds it."""
        member = self._roster.known(name)
        return None if member is None or member.phase != "ready" or member.instance is None else member.instance.service

    async def encoder(self, name: str, exchange: Exchange, *wanted: Task) -> EncoderService:
        """The encoder of that name, for as long as the exchange lasts. Raises as `generator` does."""
        service = (await self._hold(name, exchange, *wanted)).service
        assert isinstance(service, EncoderService)
        return service

    # Who changes what.

    async def start(self) -> None:
        """Load what is to be there from the start. Raises `OrtserveError` for the first that cannot be loaded."""
        for member in list(self._members):
            if member.spec.preload:
                await self._load(member)
        self.is_started = True

    async def load(self, name: str) -> None:
        """Load a model that is not there, or has failed. Raises `ApiError` (404) or `OrtserveError`."""
        await self._load(self._find(name, *ALL_TASKS))

    def enlist(self, spec: ModelSpec) -> str:
        """Add one that is not known yet; the name it is shown by. `load_enlisted` is to follow.

        Raises `ConfigurationError` for a name that is taken, and beside engine processes that leave it no core;
        `ManifestError` for an unreadable folder.
        """
        if spec.name is None:  # whatever is found out about it later: it is asked for by what it is called now
            spec = replace(spec, name=Member(spec, self._tools).name)
        member = Member(spec, self._tools)
        self._check_engines((*self._members, member))
        self._roster = roster_of((*self._members, member))
        self._members.append(member)
        return member.name

    async def load_enlisted(self, name: str) -> None:
        """Load it for the first time. Raises `OrtserveError`; it is gone then."""
        member = self._roster.find(name)
        try:
            await self._load(member)
        except BaseException:
            self._members.remove(member)
            self._publish()
            raise

    async def unload(self, name: str, drain_s: float | None = None) -> None:
        """Let go of one until it is loaded again: no request brings it back. Raises `ApiError` (404)."""
        member = self._find(name, *ALL_TASKS)
        member.stop_restarting()
        async with member.lock:
            member.is_on_demand = False
            await member.close(self._drain_s if drain_s is None else drain_s)

    async def swap(self, name: str, spec: ModelSpec, drain_s: float | None = None) -> None:
        """Put another model in the place of one, under the same names.

        The new one is loaded beside the old where memory is free, else after it; requests wait meanwhile. When it
        cannot be loaded the old one stays, or comes back. Raises `ApiError` (404) or `OrtserveError`.
        """
        old = self._find(name, *ALL_TASKS)
        aliases = tuple(dict.fromkeys((name, *old.spec.aliases)))
        spec = replace(spec, name=old.name, aliases=aliases, pinned=old.spec.pinned, preload=old.spec.preload)
        new = Member(spec, self._tools)
        drain_s = self._drain_s if drain_s is None else drain_s
        prepared = await new.prepare()
        old.stop_restarting()
        async with old.lock:
            if old not in self._members:
                raise ConfigurationError(f"{name} has been replaced by another model meanwhile: look, and try again")
            old.check_thread()
            if new.entry.task != old.entry.task:
                raise ConfigurationError(f"{spec.source} does not do what {old.name} does: name a model of its kind")
            members = [new if member is old else member for member in self._members]
            self._check_engines(members)
            roster_of(members)
            allotment = self._budget.allot(prepared, old)
            self._budget.arriving.append(new)
            old.is_moving = True
            try:
                if self._budget.has_room(allotment):
                    await new.open(allotment)
                    self._install(new, old)
                    await old.close(drain_s)
                else:
                    await self._replace(old, new, allotment, drain_s)
            finally:
                old.is_moving = False
                if new in self._budget.arriving:
                    self._budget.arriving.remove(new)
                old.turn_to(old.phase, old.error)  # wakes those who wait: their model may be the new one now

    def drain(self, drain_s: float) -> None:
        """The server ends: accept nothing more, give what runs so many seconds, and stop. Called on any thread."""
        self._is_closing = True
        drivers = [member.instance.service.driver for member in list(self._members) if member.instance is not None]
        closers = [threading.Thread(target=driver.close, kwargs={"drain_s": drain_s}) for driver in drivers]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()

    async def close(self) -> None:
        """Stop everything, and drop what waits in the worker pools."""
        self._is_closing = True
        for task in list(self._loads.values()):
            task.cancel()
        for member in self._members:
            if member.instance is not None:
                await member.close(0.0)
            member.stop_restarting()

    # How it is done.

    async def _hold(self, name: str, exchange: Exchange, *wanted: Task) -> Instance:
        deadline = asyncio.get_running_loop().time() + self._hold_s
        while True:
            member = self._find(name, *wanted)
            instance = member.instance
            if member.phase == "ready" and instance is not None:
                exchange.endings.append(instance.hold())
                return instance
            check_wait(member, is_closing=self._is_closing, is_started=self.is_started)
            if self._num_held >= MAX_HELD:
                raise ApiError(unavailable(f"Too many requests wait for the model `{name}`.", retry_after_s=10.0))
            self._num_held += 1
            try:
                async with asyncio.timeout_at(deadline):
                    await self._wait_for(member)
            except TimeoutError:
                raise ApiError(not_yet(member)) from None
            finally:
                self._num_held -= 1

    async def _wait_for(self, member: Member) -> None:
        """Until it has changed; one that is loaded on demand is loaded. Raises `ApiError` when that fails."""
        if member.phase != "unloaded":
            await member.changed.wait()
            return
        task = self._loads.get(member)
        if task is None:
            task = self._loads[member] = asyncio.get_running_loop().create_task(self._load(member))
            task.add_done_callback(partial(self._forget_load, member))
        try:
            await asyncio.shield(task)
        except OrtserveError as error:
            raise ApiError(unavailable(f"The model cannot be loaded now: {error}.", retry_after_s=10.0)) from error

    def _forget_load(self, member: Member, task: asyncio.Task[None]) -> None:
        self._loads.pop(member, None)
        if not task.cancelled() and isinstance(task.exception(), Exception):
            log().warning("model_not_loaded", model=member.name, reason=str(task.exception()))

    def _refuse_while_starting(self) -> None:
        if not self.is_started:
            member = next((one for one in self._members if one.phase != "ready"), self._members[0])
            raise ApiError(not_yet(member))

    def _find(self, name: str, *wanted: Task) -> Member:
        if any(member.prepared is None for member in self._members) and not self.directory.knows(name):
            self._refuse_while_starting()  # it may be the name of one that is being exported
        return self._roster.find(self.directory.find(name, *wanted).names[0])

    async def _load(self, member: Member) -> None:
        async with member.lock:
            if member.phase == "ready":
                return
            if member not in self._members:  # another one has taken its place meanwhile
                return
            member.check_thread()
            prepared = await member.prepare()
            try:
                self._publish()
            except ConfigurationError as error:
                member.prepared = None
                member.turn_to("failed", str(error))
                raise
            try:
                allotment = await self._budget.make_room(
                    member, prepared, may_evict=self.is_started, drain_s=self._drain_s
                )
            except MemoryBudgetError as error:
                member.turn_to("unloaded", str(error))
                raise
            member.is_on_demand = True
            await member.open(allotment)

    async def _replace(self, old: Member, new: Member, allotment: Allotment, drain_s: float) -> None:
        """Swap where both do not fit: the old one goes first, and comes back if the new one cannot be loaded."""
        former = old.allotment
        if not self._budget.has_room(allotment, old):
            raise self._budget.no_room(new, allotment)
        new.allotment = allotment  # at once, in the old one's place
        old.allotment = None
        await old.close(drain_s)
        old.turn_to("loading")
        try:
            await new.open(allotment)
        except BaseException:
            if former is not None:
                await old.open(former)
            else:
                old.turn_to("unloaded")
            raise
        self._install(new, old)

    def _install(self, new: Member, old: Member) -> None:
        self._budget.arriving.remove(new)
        self._members[self._members.index(old)] = new
        self._publish()

    def _check_engines(self, members: Iterable[Member]) -> None:
        check_engines(((one.spec, one.generates) for one in members), leave_cores=self._leaves_cores)

    def _publish(self) -> None:
        """Let readers see which models there are now. Raises `ConfigurationError` for two of one name."""
        self._roster = roster_of(self._members)
