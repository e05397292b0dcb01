"""Batches and uploads on a disk that refuses for a while: nothing is lost, nothing is half there."""

from __future__ import annotations

import asyncio
import errno
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from structlog.testing import capture_logs

from ortserve.gateway.answers.batches import BatchResult, LineError
from ortserve.gateway.batches import job, patience
from ortserve.gateway.batches.files import append_result, read_results
from ortserve.gateway.errors import ApiError, unavailable
from ortserve.gateway.store.batches import Batches
from ortserve.gateway.store.database import Database
from ortserve.gateway.store.files import Files, NewFile
from ortserve.gateway.store.state import State, StateOptions
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying
from tests.gateway.test_batches import PATH, begin, line, results, wait_for_status
from tests.gateway.test_files import form
from tests.gateway.test_responses import refused
from tests.waiting import wait_for

LINES = [line(f"q{number}") for number in range(9)]
FULL = ApiError(unavailable("The state store cannot be used: database or disk is full."))
T = TypeVar("T")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(job, "SAVE_S", 0.0)


@contextmanager
def serving(folder: Path) -> Iterator[httpx.Client]:
    with (
        running(make_driver(saying("x")), state=State(StateOptions(folder))) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        yield http


def refuse_results(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[int], bool]) -> list[bool]:
    """Whether each try to write a result was refused, by its number."""
    tries: list[bool] = []

    def append(path: Path, result: BatchResult) -> None:
        tries.append(is_full(len(tries)))
        if tries[-1]:
            raise OSError(errno.ENOSPC, "No space left on device")
        append_result(path, result)

    monkeypatch.setattr(job, "append_result", append)
    return tries


def check(http: httpx.Client, id: str) -> None:
    reply = wait_for_status(http, id, "completed")
    assert reply["request_counts"] == {"total": 9, "completed": 9, "failed": 0}
    assert set(results(http, reply["output_file_id"])) == {one["custom_id"] for one in LINES}


def test_a_disk_that_is_full_for_a_while_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, tries = Batches.write, list[str]()

    async def write_sometimes(self: Batches, *words: Any, **options: Any) -> None:
        tries.append("")
        if len(tries) % 3:
            raise FULL
        await write(self, *words, **options)

    monkeypatch.setattr(Batches, "write", write_sometimes)
    refused_results = refuse_results(monkeypatch, lambda number: number in (0, 4, 5))
    with serving(tmp_path) as http, capture_logs() as logged:
        check(http, begin(http, LINES)["id"])
    assert sum(refused_results) == 3
    told = [one for one in logged if one["event"] == "batch_waits_for_disk"]
    assert any("No space left" in one["error"] for one in told)
    assert any("database or disk is full" in one["error"] for one in told)


def test_a_disk_that_is_full_to_the_end_leaves_the_rest_to_the_next_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        tries = refuse_results(patch, lambda number: number >= 3)
        with serving(tmp_path) as http:
            id = begin(http, LINES)["id"]
            wait_for(lambda: any(tries))
            assert http.get(f"{PATH}/{id}").json()["status"] == "in_progress"
    with serving(tmp_path) as http:
        check(http, id)


def test_cancelling_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_full = True
    tries = refuse_results(monkeypatch, lambda _: is_full)
    with serving(tmp_path) as http:
        id = begin(http, LINES)["id"]
        wait_for(lambda: any(tries))
        assert http.post(f"{PATH}/{id}/cancel").json()["status"] == "cancelling"
        is_full = False
        counts = wait_for_status(http, id, "cancelled")["request_counts"]
        assert 0 < counts["completed"] < 9, "what had been answered is written"


def test_results_that_were_renamed_and_not_committed_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, write = Files.add, Batches.write

    async def add_input_only(self: Files, tenant: bytes, new: NewFile) -> None:
        if new.id.endswith("_output"):
            raise FULL
        await add(self, tenant, new)

    async def write_no_end(self: Batches, *words: Any, is_over: bool) -> None:
        if is_over:
            raise FULL
        await write(self, *words, is_over=is_over)

    with monkeypatch.context() as patch:
        patch.setattr(Files, "add", add_input_only)
        with serving(tmp_path) as http:
            id = begin(http, LINES)["id"]
            wait_for_status(http, id, "finalizing")
    (partial,) = (tmp_path / "files").glob("*_output.part")
    partial.rename(partial.with_suffix(""))  # as a server leaves it that is killed before its commit
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "write", write_no_end)
        with serving(tmp_path) as http:
            wait_for(lambda: bool(http.get("/v1/files?purpose=batch_output").json()["data"]))
    with serving(tmp_path) as http:  # after one that is killed when it has published them
        check(http, id)


def test_a_commit_that_fails_undoes_the_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transact = Database._transact

    def fail_at_the_end(self: Database, work: Callable[[sqlite3.Connection], T]) -> T:
        def worked(connection: sqlite3.Connection) -> T:
            work(connection)
            raise sqlite3.OperationalError("database or disk is full")

        return transact(self, worked)

    state = State(StateOptions(tmp_path))
    try:
        files, new = state.files, NewFile("file_1", 1, b"{}", 4, None)
        files.partial_path(new.id).write_bytes(b"data")
        with monkeypatch.context() as patch:
            patch.setattr(Database, "_transact", fail_at_the_end)
            with pytest.raises(ApiError, match="disk is full"):
                asyncio.run(files.add(b"t", new))
        asyncio.run(files.add(b"t", new))
        assert files.path(new.id).read_bytes() == b"data"
    finally:
        asyncio.run(state.close())


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, limits = tmp_path / "results", resource.getrlimit(resource.RLIMIT_FSIZE)
    result = BatchResult("batch_req_1", "q1", error=LineError("x", "y" * 1000))
    append_result(path, result)
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))  # the system takes a hundred bytes more
    try:
        with pytest.raises(OSError, match="large"):
            append_result(path, result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size
    append_result(path, result)
    found: list[BatchResult] = []
    assert read_results(path, found.append) == 2
    assert found == [result, result]


def test_an_upload_that_the_disk_refuses_is_a_503(tmp_path: Path) -> None:
    with serving(tmp_path) as http:
        folder = tmp_path / "files"
        assert http.get("/v1/files").status_code == 200, "it has started, and swept what was there"
        folder.rename(tmp_path / "elsewhere")
        error = refused(http.post("/v1/files", **form(b"x" * 1000)), 503)
        assert error["message"] == "The file cannot be kept: No such file or directory."
        (tmp_path / "elsewhere").rename(folder)
        assert http.post("/v1/files", **form(b"x" * 1000)).status_code == 200
        assert len(list(folder.iterdir())) == 1
