"""GET /health, /health/live, /health/ready and GET /. Tell strangers only whether."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.encoders.service import EncoderService
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.fleet.state import ModelState, needs_restart
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.drivers.engine_driver import WorkerState

QUIET = ("ready", "unloaded")  # nothing has to be said about them
RETRY_S = 5


@dataclass(frozen=True, slots=True)
class HealthRoute:
    """Whether this server can take requests."""

    fleet: Fleet

    async def live(self, _: Request) -> Response:
        """200 unless only a restart helps: 503 when an engine hangs, or all models have failed for good."""
        states = self.fleet.states()
        if needs_restart(states):
            word = "hung" if any(state.is_hung for state in states) else "failed"
            return _response({"status": word}, 503)
        return _response({"status": "ok"}, 200)

    async def ready(self, request: Request) -> Response:
        """200 while requests are taken; 503 with progress until the models are loaded, and while the server ends.

        A model that has failed beside others that answer makes it `degraded`: taking the server away would not help.
        """
        states = self.fleet.states()
        word, status = self._verdict(states)
        body: dict[str, object] = {"status": word}
        if exchange_of(request.scope).is_known:
            noted = [_progress(state) for state in states if state.phase not in QUIET or not state.can_serve]
            if noted:
                body["models"] = noted
        return _response(body, status)

    async def get(self, request: Request) -> Response:
        """As `ready`, and what runs for those whose key is known."""
        states = self.fleet.states()
        word, status = self._verdict(states)
        if not exchange_of(request.scope).is_known or status != 200:
            return await self.ready(request)
        body: dict[str, object] = {"status": word, "model": states[0].name}
        generating = [state.service for state in states if isinstance(state.service, ModelService)]
        if generating:
            stats = [service.driver.stats() for service in generating]
            body["running"] = sum(one.num_running for one in stats)
            body["waiting"] = sum(one.num_waiting for one in stats)
            body["swapped"] = sum(one.num_swapped for one in stats)
            workers = [_worker(one) for service in generating for one in service.driver.workers()]
            if workers:
                body["workers"] = workers
        encoders = [state.service for state in states if isinstance(state.service, EncoderService)]
        if encoders:
            body["encoders"] = [{"model": one.name, "waiting": one.driver.stats().num_waiting} for one in encoders]
        noted = [_progress(state) for state in states if state.phase not in QUIET or not state.can_serve]
        if noted:
            body["models"] = noted
        return _response(body, status)

    def _verdict(self, states: list[ModelState]) -> tuple[str, int]:
        if self.fleet.is_closing or self.fleet.is_leaving:
            return "unavailable", 503
        if any(state.is_hung for state in states):
            return "hung", 503
        if not self.fleet.is_started:
            return "loading", 503
        if not any(state.can_serve for state in states):
            return "unavailable", 503
        is_whole = all(state.can_serve or state.phase == "unloaded" for state in states)
        return ("ok" if is_whole else "degraded"), 200


def _worker(state: WorkerState) -> dict[str, object]:
    return {
        "worker": state.name,
        "status": "failed" if state.pid is None else "ok",
        "requests": state.num_requests,
        "restarts": state.num_restarts,
    }


def _progress(state: ModelState) -> dict[str, object]:
    fields: dict[str, object] = {"model": state.name, "state": state.phase, "seconds": round(state.phase_s, 1)}
    return fields if state.error is None else {**fields, "error": state.error}


def _response(body: dict[str, object], status: int) -> Response:
    headers = {} if status == 200 else {"retry-after": str(RETRY_S)}
    return Response(msgspec.json.encode(body), status, headers, "application/json")
