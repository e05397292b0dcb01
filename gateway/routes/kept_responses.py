"""/v1/responses/{id}: what is kept of a response, its events again, its end. Knows no generation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.deleted import DeletedReply
from ortserve.gateway.errors import ApiError, bad_request, not_found
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.http.watch import Patience
from ortserve.gateway.request_fields.queries import MAX_EVENTS
from ortserve.gateway.responses.runs import Runs, split_frames
from ortserve.gateway.routes.bodies import json_response
from ortserve.gateway.routes.pages import (
    list_response,
    query_flag,
    query_integer,
    query_words,
    read_page,
    wrong_cursor,
)
from ortserve.gateway.schema.responses import INCLUDABLE
from ortserve.gateway.store.pages import CursorError, Page
from ortserve.gateway.store.records import Record
from ortserve.gateway.store.state import State
from ortserve.gateway.streams.followed import FollowedRun


class _Kept(msgspec.Struct, frozen=True):
    """What the routes need to know of a kept object."""

    background: bool


@dataclass(frozen=True, slots=True)
class KeptResponsesRoute:
    """The endpoints of responses that exist."""

    state: State
    runs: Runs
    patience: Patience

    async def get(self, request: Request) -> Response | FollowedRun:
        """The response, or with `stream` its events."""
        query_words(request, "include", INCLUDABLE)
        record = await self._record(request)
        if query_flag(request, "stream"):
            after = query_integer(request, "starting_after", 0, MAX_EVENTS)
            return FollowedRun(self._events(record, -1 if after is None else after), self.patience)
        if request.query_params.get("starting_after") is not None:
            message = "The 'starting_after' parameter is only allowed when 'stream' is enabled."
            raise bad_request(message, param="starting_after", code="invalid_value")
        run = self.runs.find(record.id)
        return _raw(record.body) if run is None else json_response(run.reply)

    async def delete(self, request: Request) -> Response:
        """Forget it; one that runs is ended."""
        record = await self._record(request)
        run = self.runs.find(record.id)
        if run is not None:
            await run.cancel()
        await self.state.responses.delete(exchange_of(request.scope).tenant, record.id)
        return json_response(DeletedReply(record.id, "response"))

    async def cancel(self, request: Request) -> Response:
        """End one that runs in the background; one that has ended stays as it is."""
        record = await self._record(request)
        if not msgspec.json.decode(record.body, type=_Kept).background:
            raise bad_request("Cannot cancel a synchronous response.")
        run = self.runs.find(record.id)
        return _raw(record.body) if run is None else json_response(await run.cancel())

    async def input_items(self, request: Request) -> Response:
        """What the model was given, the newest first."""
        query_words(request, "include", INCLUDABLE)
        id, tenant = request.path_params["id"], exchange_of(request.scope).tenant
        try:
            page = await self.state.responses.input_items(tenant, id, read_page(request))
        except CursorError as error:
            raise wrong_cursor(error, request) from None
        if page is None:
            raise ApiError(not_found("Response", id))
        return list_response(Page([(item.id, item.body) for item in page.elements], page.has_more))

    async def _record(self, request: Request) -> Record:
        id = request.path_params["id"]
        record = await self.state.responses.find(exchange_of(request.scope).tenant, id)
        if record is None:
            raise ApiError(not_found("Response", id))
        return record

    def _events(self, record: Record, starting_after: int) -> AsyncGenerator[bytes, None]:
        run = self.runs.find(record.id)
        if run is not None and run.with_events:
            return run.follow(starting_after)
        if record.extra is None:
            message = "Only responses created with 'background' and 'stream' can be streamed again."
            raise bad_request(message, param="stream", code="invalid_value")
        return _replay(record.extra, starting_after)


async def _replay(events: bytes, starting_after: int) -> AsyncGenerator[bytes, None]:
    for frame in split_frames(events)[starting_after + 1 :]:
        yield frame


def _raw(body: bytes) -> Response:
    return Response(body, media_type="application/json")
