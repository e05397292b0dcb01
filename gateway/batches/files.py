"""The files of one batch: requests read, results appended so that a torn end is found and dropped. Knows no endpoint.

Called in threads: everything here may wait for the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ortserve.gateway.answers.batches import BatchProblem, BatchResult
from ortserve.gateway.schema.batches import MAX_ID_LENGTH, BatchLine

MAX_LINES = 50_000
MAX_PROBLEMS = 20
MAX_LINE_BYTES = 32 * 2**20


def read_lines(path: Path) -> Iterator[BatchLine]:
    """The requests of a file that has been checked."""
    with path.open("rb") as file:
        for text in file:
            if text.strip():
                yield msgspec.json.decode(text, type=BatchLine)


def check_lines(path: Path, endpoint: str) -> tuple[int, list[BatchProblem]]:
    """How many requests a file has, and what is wrong with it, by line."""
    problems: list[BatchProblem] = []
    ids: set[str] = set()
    num_lines = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            num_lines += 1
            problem = _problem(text, number, endpoint, ids)
            if problem is not None:
                problems.append(problem)
            if num_lines > MAX_LINES:
                message = f"The file has more than {MAX_LINES} requests."
                problems.append(BatchProblem("too_many_tasks", message))
            if len(problems) >= MAX_PROBLEMS or num_lines > MAX_LINES:
                break
    if not num_lines:
        problems.append(BatchProblem("empty_file", "The file has no requests."))
    return num_lines, problems


def append_result(path: Path, result: BatchResult) -> None:
    """Add one line; it is complete when its end of line is there. Raises `OSError`; then nothing is added."""
    data = memoryview(msgspec.json.encode(result) + b"\n")
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)  # a full disk takes a part; the next line must not begin in the middle of this one
            raise


def read_results(path: Path, take: Callable[[BatchResult], None]) -> int:
    """Give every whole line to `take`, and cut what a killed server left unfinished; how many there are."""
    if not path.exists():
        return 0
    num_lines = num_bytes = 0
    with path.open("rb+") as file:
        for text in file:
            if not text.endswith(b"\n"):
                file.truncate(num_bytes)
                break
            take(msgspec.json.decode(text, type=BatchResult))
            num_lines += 1
            num_bytes += len(text)
    return num_lines


def _problem(text: bytes, number: int, endpoint: str, ids: set[str]) -> BatchProblem | None:
    if len(text) > MAX_LINE_BYTES:
        return BatchProblem("invalid_request", f"The line has more than {MAX_LINE_BYTES} bytes.", number)
    try:
        line = msgspec.json.decode(text, type=BatchLine)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return BatchProblem("invalid_json_line", f"This line cannot be read: {error}.", number)
    if not 0 < len(line.custom_id) <= MAX_ID_LENGTH:
        message = f"Expected a custom_id of 1 to {MAX_ID_LENGTH} characters."
        return BatchProblem("invalid_custom_id", message, number, "custom_id")
    if line.custom_id in ids:
        return BatchProblem("duplicate_custom_id", f"'{line.custom_id}' is used above.", number, "custom_id")
    ids.add(line.custom_id)
    return _wrong_request(line, number, endpoint)


def _wrong_request(line: BatchLine, number: int, endpoint: str) -> BatchProblem | None:
    if line.url != endpoint:
        message = f"Expected the batch's endpoint '{endpoint}', but got '{line.url[:100]}'."
        return BatchProblem("mismatched_url", message, number, "url")
    if not bytes(line.body).lstrip().startswith(b"{"):
        return BatchProblem("invalid_request", "Expected an object.", number, "body")
    return None
