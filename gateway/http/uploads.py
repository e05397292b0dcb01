"""multipart/form-data with one file, streamed to disk as it comes. Knows no store and no purpose.

RFC 7578. Whatever its size, an upload takes a few hundred kilobytes of memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from ortserve.gateway.errors import ApiError, Problem, bad_request, missing_parameter, unavailable
from ortserve.gateway.logs import log

FILE_FIELD = "file"
MAX_FIELDS = 16
MAX_FIELD_BYTES = 4096
FLUSH_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Upload:
    """What was sent beside the file, and the file's own name and size."""

    fields: Mapping[str, str]
    filename: str
    num_bytes: int


class _Form:
    """The parser's callbacks: file bytes wait in `pending` until they are written."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.pending = bytearray()
        self.has_ended = False
        self._header_name = b""
        self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._is_file = False
        self._value = bytearray()

    def on_part_begin(self) -> None:
        self._headers, self._value = {}, bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition"))
        if disposition != b"form-data" or b"name" not in options:
            raise bad_request("Invalid form: a part has no name.", code="invalid_form")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._is_file = self._name == FILE_FIELD
        if self._is_file:
            if self.filename is not None:
                raise bad_request("Invalid 'file': one file at a time.", param=FILE_FIELD, code="invalid_form")
            self.filename = _filename(options.get(b"filename", b"file"))
        elif len(self.fields) >= MAX_FIELDS:
            raise bad_request(f"Invalid form: more than {MAX_FIELDS} fields.", code="invalid_form")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.pending += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            message = f"Invalid '{self._name[:64]}': more than {MAX_FIELD_BYTES} bytes."
            raise bad_request(message, param=self._name[:64], code="string_above_max_length")

    def on_part_end(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def on_end(self) -> None:
        self.has_ended = True


async def receive_upload(request: Request, path: Path, *, max_bytes: int) -> Upload:
    """Write the form's file to `path`. Raises `ApiError` (400, 413, 503) or `ClientDisconnect`; then `path` is gone."""
    form = _Form()
    parser = MultipartParser(
        _boundary(request),
        {
            "on_part_begin": form.on_part_begin,
            "on_header_field": form.on_header_field,
            "on_header_value": form.on_header_value,
            "on_header_end": form.on_header_end,
            "on_headers_finished": form.on_headers_finished,
            "on_part_data": form.on_part_data,
            "on_part_end": form.on_part_end,
            "on_end": form.on_end,
        },
    )
    with gone_on_failure(path):
        num_bytes = await _write(request, parser, form, path, max_bytes)
        return Upload(form.fields, _checked_name(form), num_bytes)


@contextmanager
def gone_on_failure(path: Path) -> Iterator[None]:
    """Delete the file when the block fails; a form that cannot be read is a 400, a disk that refuses a 503."""
    try:
        yield
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            log().error("upload_not_written", path=str(path), error=str(error))
            raise ApiError(unavailable(f"The file cannot be kept: {error.strerror}.")) from error
        if isinstance(error, FormParserError):
            raise bad_request(f"Invalid form: {error}.", code="invalid_form") from None
        raise


def _filename(data: bytes) -> str:
    """As browsers and clients write it: quotes and line ends are percent-encoded, and nothing else is."""
    for code, byte in ((b"%22", b'"'), (b"%0D", b"\r"), (b"%0A", b"\n")):
        data = data.replace(code, byte)
    return data.decode("utf-8", "replace")


def _checked_name(form: _Form) -> str:
    if not form.has_ended:
        raise bad_request("Invalid form: it ends before its last boundary.", code="invalid_form")
    if form.filename is None:
        raise missing_parameter(FILE_FIELD)
    return form.filename


async def _write(request: Request, parser: MultipartParser, form: _Form, path: Path, max_bytes: int) -> int:
    num_bytes = 0
    with path.open("wb") as file:
        async for chunk in request.stream():
            parser.write(chunk)
            if len(form.pending) >= FLUSH_BYTES:
                num_bytes += len(form.pending)
                _check_size(num_bytes, max_bytes)
                data, form.pending = form.pending, bytearray()
                await asyncio.to_thread(file.write, data)
        parser.finalize()
        num_bytes += len(form.pending)
        _check_size(num_bytes, max_bytes)
        await asyncio.to_thread(file.write, form.pending)
    return num_bytes


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        message = f"Invalid 'file': at most {max_bytes} bytes are accepted."
        raise ApiError(Problem(413, message, param=FILE_FIELD, code="file_too_large"))


def _boundary(request: Request) -> bytes:
    type_, options = parse_options_header(request.headers.get("content-type"))
    if type_ != b"multipart/form-data" or not options.get(b"boundary"):
        message = "Unsupported content type. Files are sent as 'Content-Type: multipart/form-data' with a boundary."
        raise bad_request(message, code="unsupported_content_type")
    return options[b"boundary"]
