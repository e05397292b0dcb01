"""/admin/models: which models there are, and the operator's wishes about them. Checks no key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.admin_models import ManagedModel, ManagedModels
from ortserve.gateway.errors import ApiError, Problem, bad_request
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.fleet.spec import ModelSpec
from ortserve.gateway.fleet.state import ModelState
from ortserve.gateway.logs import log
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.request_fields.admin import LOAD, SWAP, UNLOAD
from ortserve.gateway.routes.bodies import json_response, read_request
from ortserve.gateway.schema.admin_models import read_load, read_swap, read_unload
from ortserve.runtime.errors import MemoryBudgetError, OrtserveError

NewModel: TypeAlias = Callable[[str], ModelSpec]  # a source with the server's own options


@dataclass(frozen=True, slots=True)
class AdminModelsRoute:
    """The endpoints of all models. `new_model` None: none may be brought in from outside."""

    fleet: Fleet
    pool: WorkPool
    new_model: NewModel | None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)  # changes nobody waits for

    async def index(self, _: Request) -> Response:
        """All models, loaded or not, and the memory they share."""
        fleet = self.fleet
        return json_response(ManagedModels(list(map(_managed, fleet.states())), fleet.memory, fleet.num_bytes))

    async def load(self, request: Request) -> Response:
        """Load one that is known, or one from elsewhere; answered when it is there, unless `wait` is false."""
        call = await read_request(request, LOAD, read_load, self.pool)
        if call.model is not None:
            name = self.fleet.state(call.model).name
            await self._change(self.fleet.load(name), waits=call.waits)
        else:
            assert call.source is not None
            spec = replace(self._spec(call.source), name=call.name, aliases=call.aliases, pinned=call.is_pinned)
            try:
                name = self.fleet.enlist(spec)
            except OrtserveError as error:
                raise _refusal(error) from error
            await self._change(self.fleet.load_enlisted(name), waits=call.waits)
        return json_response(_managed(self.fleet.state(name)))

    async def unload(self, request: Request) -> Response:
        """Let go of one, after its requests have ended or `drain` seconds."""
        call = await read_request(request, UNLOAD, read_unload, self.pool)
        await self._change(self.fleet.unload(call.model, call.drain_s))
        return json_response(_managed(self.fleet.state(call.model)))

    async def swap(self, request: Request) -> Response:
        """Put another one in its place, under the same names."""
        call = await read_request(request, SWAP, read_swap, self.pool)
        await self._change(self.fleet.swap(call.model, self._spec(call.source), call.drain_s))
        return json_response(_managed(self.fleet.state(call.model)))

    def _spec(self, source: str) -> ModelSpec:
        if self.new_model is None:
            raise bad_request("Invalid 'source': this server takes no other models.", param="source")
        return self.new_model(source)

    async def _change(self, change: Coroutine[object, object, None], *, waits: bool = True) -> None:
        """Let it happen, whether or not the client stays. Raises `ApiError` for what goes wrong."""
        task = asyncio.get_running_loop().create_task(_told(change))
        self.tasks.add(task)
        task.add_done_callback(self._forget)
        if waits:
            await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log().warning("model_change_failed", reason=str(error))


async def _told(change: Coroutine[object, object, None]) -> None:
    try:
        await change
    except OrtserveError as error:
        raise _refusal(error) from error


def _refusal(error: OrtserveError) -> ApiError:
    if isinstance(error, MemoryBudgetError):
        return ApiError(Problem(409, f"{error}.", param="model", code="insufficient_memory"))
    return bad_request(f"{error}.", param="model", code="model_unusable")


def _managed(state: ModelState) -> ManagedModel:
    prepared = state.prepared
    return ManagedModel(
        id=state.name,
        aliases=list(state.names[1:]),
        task=None if prepared is None else prepared.entry.task,
        state=state.phase,
        state_seconds=round(state.phase_s, 3),
        error=state.error,
        source=state.source,
        memory_bytes=state.num_bytes,
        requests=state.num_users,
        idle_seconds=None if state.idle_s is None else round(state.idle_s, 3),
        load_seconds=None if state.load_s is None else round(state.load_s, 3),
        restarts=state.num_restarts,
        on_demand=state.is_on_demand,
        pinned=state.is_pinned,
    )
