"""/v1/files: upload, list, look at, read, delete. Knows no batch."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response

from ortserve.gateway.answers.deleted import DeletedReply
from ortserve.gateway.answers.files import FileReply
from ortserve.gateway.errors import ApiError, not_found
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.http.uploads import gone_on_failure, receive_upload
from ortserve.gateway.ids import new_id
from ortserve.gateway.request_fields.queries import MAX_FILES
from ortserve.gateway.routes.bodies import json_response, now
from ortserve.gateway.routes.pages import list_response, read_page, wrong_cursor
from ortserve.gateway.routes.whole import CLIENT_CLOSED
from ortserve.gateway.schema.files import read_file_ttl, read_purpose
from ortserve.gateway.store.files import NewFile
from ortserve.gateway.store.pages import CursorError, Page
from ortserve.gateway.store.records import Record
from ortserve.gateway.store.state import State


@dataclass(frozen=True, slots=True)
class FilesRoute:
    """The endpoints of files. An id that is not kept is a 404, whoever keeps it."""

    state: State

    async def upload(self, request: Request) -> Response:
        """Keep one file."""
        files, id = self.state.files, new_id("file")
        partial = files.partial_path(id)
        try:
            upload = await receive_upload(request, partial, max_bytes=files.bounds.max_file_bytes)
        except ClientDisconnect:
            exchange_of(request.scope).outcome = "disconnected"
            return Response(status_code=CLIENT_CLOSED)
        with gone_on_failure(partial):
            purpose = read_purpose(upload.fields)
            ttl_s = read_file_ttl(upload.fields, purpose)
            created_at = now()
            expires_at = None if ttl_s is None else created_at + ttl_s
            reply = FileReply(id, upload.num_bytes, created_at, upload.filename, purpose, expires_at)
            new = NewFile(id, created_at, msgspec.json.encode(reply), upload.num_bytes, ttl_s)
            await files.add(exchange_of(request.scope).tenant, new)
        return json_response(reply)

    async def index(self, request: Request) -> Response:
        """All files, the newest first."""
        purpose = request.query_params.get("purpose")
        page_request = read_page(request, default=MAX_FILES, maximum=MAX_FILES)
        try:
            page = await self.state.files.page(exchange_of(request.scope).tenant, page_request, purpose)
        except CursorError as error:
            raise wrong_cursor(error, request) from None
        return list_response(Page([(record.id, record.body) for record in page.elements], page.has_more))

    async def get(self, request: Request) -> Response:
        """Its object."""
        record = await self._record(request)
        return Response(record.body, media_type="application/json")

    async def content(self, request: Request) -> Response:
        """Its bytes."""
        record = await self._record(request)
        reply = msgspec.json.decode(record.body, type=FileReply)
        path = self.state.files.path(record.id)
        return FileResponse(path, media_type="application/octet-stream", filename=reply.filename)

    async def delete(self, request: Request) -> Response:
        """Forget it."""
        record = await self._record(request)
        await self.state.files.delete(exchange_of(request.scope).tenant, record.id)
        return json_response(DeletedReply(record.id, "file"))

    async def _record(self, request: Request) -> Record:
        id = request.path_params["id"]
        record = await self.state.files.find(exchange_of(request.scope).tenant, id)
        if record is None:
            raise ApiError(not_found("File", id))
        return record
