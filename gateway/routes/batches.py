"""/v1/batches: begin, list, look at, cancel. Knows no line of a file."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.batches import BatchReply, is_over
from ortserve.gateway.answers.files import FileReply
from ortserve.gateway.batches.jobs import BatchJobs
from ortserve.gateway.errors import ApiError, bad_request, not_found
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.ids import new_id
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.request_fields.batches import BATCHES
from ortserve.gateway.routes.bodies import json_response, now, read_request
from ortserve.gateway.routes.pages import list_response, read_page, wrong_cursor
from ortserve.gateway.schema.batches import WINDOW_S, read_batch_call
from ortserve.gateway.store.pages import CursorError, Page
from ortserve.gateway.store.records import Record
from ortserve.gateway.store.state import State


@dataclass(frozen=True, slots=True)
class BatchesRoute:
    """The endpoints of batches. An id that is not kept is a 404, whoever keeps it."""

    state: State
    jobs: BatchJobs
    pool: WorkPool

    async def create(self, request: Request) -> Response:
        """Begin one; its file is checked by the batch itself."""
        tenant = exchange_of(request.scope).tenant
        new = await read_request(request, BATCHES, read_batch_call, self.pool)
        if not self.jobs.can_run(new.endpoint):
            message = f"Invalid 'endpoint': no model of this server answers '{new.endpoint}'."
            raise bad_request(message, param="endpoint", code="invalid_value")
        self.jobs.check_room()
        file = await self.state.files.find(tenant, new.input_file_id)
        if file is None:
            raise ApiError(not_found("File", new.input_file_id, param="input_file_id"))
        if msgspec.json.decode(file.body, type=FileReply).purpose != "batch":
            message = "Invalid 'input_file_id': the file was not uploaded with the purpose 'batch'."
            raise bad_request(message, param="input_file_id", code="invalid_value")
        created_at = now()
        reply = BatchReply(
            id=new_id("batch"),
            endpoint=new.endpoint,
            input_file_id=new.input_file_id,
            completion_window="24h",
            status="validating",
            created_at=created_at,
            expires_at=created_at + WINDOW_S,
            metadata=new.metadata,
        )
        await self.jobs.begin(tenant, reply, new.output_ttl_s)
        return json_response(reply)

    async def index(self, request: Request) -> Response:
        """All batches, the newest first."""
        try:
            page = await self.state.batches.page(exchange_of(request.scope).tenant, read_page(request))
        except CursorError as error:
            raise wrong_cursor(error, request) from None
        return list_response(Page([(record.id, self._body(record)) for record in page.elements], page.has_more))

    async def get(self, request: Request) -> Response:
        """Its object."""
        return Response(self._body(await self._record(request)), media_type="application/json")

    async def cancel(self, request: Request) -> Response:
        """Run nothing more of it; what it has stays."""
        record = await self._record(request)
        job = self.jobs.find(record.id)
        if job is None or is_over(job.reply):
            reply = msgspec.json.decode(self._body(record), type=BatchReply)
            raise bad_request(f"Cannot cancel a batch with status '{reply.status}'.", code="invalid_request")
        await job.cancel()
        return json_response(job.reply)

    def _body(self, record: Record) -> bytes:
        job = self.jobs.find(record.id)
        return record.body if job is None else msgspec.json.encode(job.reply)

    async def _record(self, request: Request) -> Record:
        id = request.path_params["id"]
        record = await self.state.batches.find(exchange_of(request.scope).tenant, id)
        if record is None:
            raise ApiError(not_found("Batch", id))
        return record
