"""The file under the stores: one owner, transactions, killed processes, damage, and what is left on disk."""

from __future__ import annotations

import asyncio
import gc
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ortserve.gateway.errors import ApiError
from ortserve.gateway.store import database
from ortserve.gateway.store.database import FILE_NAME, Database, StateError
from ortserve.gateway.store.schema import SCHEMA
from tests.gateway.store.keeping import ALICE, counted, opened, response, run, used
from tests.waiting import PATIENCE_S

# Keeps responses until it is killed, saying after each that it is kept.
WRITER = """
import asyncio, sys
from pathlib import Path
from tests.gateway.store.keeping import ALICE, item, opened, response
from ortserve.gateway.store.state import State, StateOptions

async def main():
    state = State(StateOptions(Path(sys.argv[1])))
    print("open", flush=True)
    for number in range(1_000_000):
        outputs = [item(f"o{number}-{place}") for place in range(20)]
        inputs = [item(f"i{number}")]
        await state.responses.add(ALICE, response(f"r{number}", size=3000, inputs=inputs, outputs=outputs))
        print(number, flush=True)

asyncio.run(main())
"""


def start_writer(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)


def test_a_killed_process_loses_nothing_it_has_confirmed(tmp_path: Path) -> None:
    for _ in range(3):
        writer = start_writer(tmp_path)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        last = -1
        while last < 30:
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        last = max([last, *(int(line) for line in writer.stdout.read().split("\n")[:-1])])
        writer.stdout.close()
        writer.wait(PATIENCE_S)
        with opened(tmp_path) as state:
            for number in range(last + 1):
                listed = run(state.responses.listed(ALICE, f"r{number}"))
                assert listed is not None
                assert len(listed) == 21
            assert used(state) == counted(state)
            for number in range(last + 2):
                run(state.responses.delete(ALICE, f"r{number}"))
            assert used(state).num_rows == 0


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    writer = start_writer(tmp_path)
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(StateError, match="in use by another server"), opened(tmp_path):
            pass
    finally:
        writer.kill()
        writer.wait(PATIENCE_S)
        writer.stdout.close()
    with opened(tmp_path):  # the lock dies with its owner
        with pytest.raises(StateError, match="in use"), opened(tmp_path):
            pass
        with opened(tmp_path / "other"):
            pass


@pytest.mark.parametrize("damage", ["head", "middle", "text"])
def test_a_damaged_file_is_set_aside_by_name(tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path) as state:
        for number in range(30):
            run(state.responses.add(ALICE, response(f"r{number}", size=4000)))
    path = tmp_path / FILE_NAME
    data = bytearray(path.read_bytes())
    if damage == "text":
        data = bytearray(b"not a database at all, but long enough to be one. " * 100)
    else:
        start = 0 if damage == "head" else 8192
        data[start : start + 16384] = b"\x55" * 16384
    path.write_bytes(data)
    with opened(tmp_path) as state:
        assert used(state).num_rows == 0
        run(state.responses.add(ALICE, response("new")))
        (aside,) = tmp_path.glob(f"{FILE_NAME}.damaged-*")
        assert aside.read_bytes() == data
    shown = capfd.readouterr().err
    assert "state_set_aside" in shown
    assert aside.name in shown
    with opened(tmp_path) as state:
        assert run(state.responses.find(ALICE, "new")) is not None


def test_a_foreign_or_newer_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    for statements, message in (
        ("PRAGMA application_id = 77; CREATE TABLE notes(x)", "belongs to another program"),
        (f"PRAGMA application_id = {database.APPLICATION_ID}; PRAGMA user_version = 99", "newer version"),
    ):
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        connection.executescript(f"{statements}; CREATE TABLE IF NOT EXISTS more(x)")
        connection.close()
        before = path.read_bytes()
        with pytest.raises(StateError, match=message), opened(tmp_path):
            pass
        assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="choose another folder"), opened(tmp_path / "file" / "state"):
        pass


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with opened(folder) as state:
        run(state.responses.add(ALICE, response("r", size=100)))
        assert folder.stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_deleted_text_does_not_stay_in_the_file(tmp_path: Path) -> None:
    secret = "a very private sentence"
    kept = response("r", size=10)
    with opened(tmp_path) as state:
        private = type(kept)(kept.id, kept.created_at, secret.encode())
        run(state.responses.add(ALICE, private))
        run(state.responses.delete(ALICE, "r"))
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert [path.name for path in files if secret.encode() in path.read_bytes()] == []


def test_a_failed_function_undoes_everything() -> None:
    store = Database(None, SCHEMA)

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO totals VALUES (x'01', 1, 1)")
        raise ValueError("half way")

    def num_totals(connection: sqlite3.Connection) -> int:
        return int(connection.execute("SELECT count(*) FROM totals").fetchone()[0])

    async def main() -> int:
        with pytest.raises(ValueError, match="half way"):
            await store.run(half)
        return await store.run(num_totals)

    try:
        assert asyncio.run(main()) == 0
    finally:
        store.close()
        store.close()


def test_too_much_waiting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MAX_PENDING", 3)
    store = Database(None, SCHEMA)
    gate = threading.Event()

    async def main() -> None:
        blocked = [asyncio.create_task(store.run(lambda _: gate.wait(PATIENCE_S))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="waiting"):
            await store.run(lambda _: None)
        gate.set()  # the loop was free all the time
        assert await asyncio.gather(*blocked) == [True] * 3
        await store.run(lambda _: None)

    try:
        asyncio.run(main())
    finally:
        store.close()


def test_one_that_nobody_closes_leaves_nothing(tmp_path: Path) -> None:
    """As an application whose lifespan never began: its thread ends, and its folder is free."""
    before = set(threading.enumerate())

    def forget() -> None:
        kept = Database(tmp_path, SCHEMA)
        kept.run_now(lambda connection: connection.execute("SELECT 1").fetchone())
        assert set(threading.enumerate()) - before
        with pytest.raises(StateError, match="in use"):
            Database(tmp_path, SCHEMA)

    forget()
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
    assert set(threading.enumerate()) <= before
    Database(tmp_path, SCHEMA).close()
