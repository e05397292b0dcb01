"""Every way in which files, folders, clocks and other processes can be bad: it costs the cache, never a request."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import pytest

from ortserve.plugins.prefix_cache import blockfile, disk
from ortserve.plugins.prefix_cache.blockfile import write_block
from tests.plugins.engine import Engine, disk_engine, files, numbers, tier
from tests.waiting import PATIENCE_S, wait_for


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    match how:
        case "truncated":
            del data[-7:]
        case "empty":
            data.clear()
        case "longer":
            data += b"x"
        case "payload":
            data[-3] ^= 1
        case "header":
            data[30] ^= 1
        case "magic":
            data[0] ^= 1
        case "tokens":
            data[len(data) - 32 - 32 - 5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "empty", "longer", "payload", "header", "magic", "tokens"])
def test_damaged_files_are_never_served(tmp_path: Path, how: str) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 12))
    engine.cache.close()
    first = min(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
    damaged(first, how)
    engine = disk_engine(tmp_path)
    assert engine.found(numbers(0, 12)) == 0
    assert tier(engine).num_ignored_files == 1
    assert len(engine.warnings) == 1
    assert not first.exists()
    engine.keep(numbers(0, 12))
    engine.restart()
    assert engine.found(numbers(0, 12)) == 12, "it is written again"
    engine.cache.close()


def test_a_damaged_middle_leaves_what_is_before_it(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 12))
    entries = [entry.key for entry in engine.cache.entries()]
    engine.cache.close()
    (path,) = [path for path in files(tmp_path) if path.name.startswith(entries[1])]
    damaged(path, "payload")
    engine = disk_engine(tmp_path)
    assert engine.found(numbers(0, 12)) == 4
    engine.cache.close()


def test_another_models_folder_is_left_alone(tmp_path: Path) -> None:
    other = Engine(options={"path": str(tmp_path)}, digest="other")
    other.keep(numbers(0, 12))
    other.cache.close()
    engine = disk_engine(tmp_path)
    assert engine.found(numbers(0, 12)) == 0
    (model,) = tmp_path.iterdir()
    shutil.copytree(model, tmp_path / blockfile.model_name("model").hex())
    engine.restart()
    assert engine.found(numbers(0, 12)) == 0, "copied by hand, under another root"
    engine.cache.close()
    assert len(files(tmp_path)) == 6


def test_a_file_of_another_version_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockfile, "VERSION", 2)
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 4))
    engine.cache.close()
    monkeypatch.setattr(blockfile, "VERSION", 1)
    engine = disk_engine(tmp_path)
    assert engine.found(numbers(0, 4)) == 0
    assert tier(engine).num_ignored_files == 1
    assert len(files(tmp_path)) == 1
    engine.cache.close()


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_costs_nothing_but_order(tmp_path: Path, jump: float) -> None:
    engine = disk_engine(tmp_path, max_bytes="2000")
    for round in range(12):
        engine.wall.now += jump if round == 4 else 1.0 if round != 8 else -jump
        engine.keep(numbers(round * 4, 4))
        assert engine.found(numbers(round * 4, 4)) == 4
    engine.restart()
    assert tier(engine).num_bytes <= 2000
    assert tier(engine).num_failures == 0
    assert sum(engine.found(numbers(round * 4, 4)) == 4 for round in range(12)) >= 4
    engine.cache.close()


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    engine = disk_engine(blocked)
    for first in range(0, 40, 4):
        engine.keep(numbers(first, 4))
        engine.clock.now += 100.0
    wait_for(lambda: tier(engine).num_failures >= 1)
    assert engine.found(numbers(0, 4)) == 4, "memory goes on"
    engine.cache.close()
    assert len(engine.warnings) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_a_full_or_read_only_disk_costs_the_tier_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    real, is_full = write_block, [True]

    def write(*arguments: object) -> int:
        if is_full[0]:
            raise error
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ortserve.plugins.prefix_cache.disk.write_block", write)
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 8))
    wait_for(lambda: tier(engine).num_failures >= 1)
    engine.keep(numbers(8, 8))
    assert tier(engine).num_skipped_writes >= 1, "it pauses after a refusal"
    engine.cache.poll()
    assert engine.cache.evict(1) == 1, "nothing stays pinned"
    assert engine.found(numbers(0, 4)) == 4
    is_full[0] = False
    engine.clock.now += 100.0
    assert engine.found(numbers(8, 4)) == 4
    engine.restart()
    assert engine.found(numbers(8, 4)) == 4, "written at the next use"
    engine.cache.close()
    assert len(engine.warnings) == 1


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.utime", fail)
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 4))
    engine.cache.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_files_that_vanish_are_misses(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 12))
    engine.restart()
    shutil.rmtree(next(tmp_path.iterdir()))
    assert engine.found(numbers(0, 12)) == 0
    assert (tier(engine).num_failures, engine.warnings) == (0, [])
    engine.keep(numbers(0, 12))
    engine.restart()
    assert engine.found(numbers(0, 12)) == 12
    engine.cache.close()


def test_abandoned_temporary_files_are_removed(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 4))
    engine.cache.close()
    folder = files(tmp_path)[0].parent
    for name, age in (("old", 7200.0), ("new", 10.0)):
        (folder / f"{name}.tmp").write_bytes(b"half")
        os.utime(folder / f"{name}.tmp", (engine.wall.now - age,) * 2)
    disk_engine(tmp_path).cache.close()
    assert [path.name for path in folder.glob("*.tmp")] == ["new.tmp"]


def test_a_slow_disk_skips_writes_and_pins_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, goes_on = write_block, threading.Event()

    def slow(*arguments: object) -> int:
        assert goes_on.wait(PATIENCE_S)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ortserve.plugins.prefix_cache.disk.write_block", slow)
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 80))
    assert tier(engine).num_skipped_writes >= 1, "and what hangs below is not even tried"
    assert engine.cache.evict(99) >= 10
    goes_on.set()
    engine.cache.close()


def test_closing_takes_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, goes_on, num_writes = threading.Event(), threading.Event(), 0

    def stuck(*arguments: object) -> int:
        nonlocal num_writes
        num_writes += 1
        writing.set()
        assert goes_on.wait(PATIENCE_S)
        return 1

    monkeypatch.setattr("ortserve.plugins.prefix_cache.disk.write_block", stuck)
    monkeypatch.setattr(disk, "_FLUSH_S", 0.1)
    monkeypatch.setattr(disk, "_JOIN_S", 0.2)
    before = set(threading.enumerate())
    engine = disk_engine(tmp_path)
    (thread,) = set(threading.enumerate()) - before
    engine.keep(numbers(0, 32))
    assert writing.wait(PATIENCE_S)
    engine.cache.close()
    assert thread.is_alive(), "it has not waited for the write that is stuck"
    goes_on.set()
    thread.join(PATIENCE_S)
    assert num_writes == 1, "what was queued behind it is not written after that time"


def serve_for_ever(folder: str, first: int, num_rounds: Synchronized[int]) -> None:
    engine = disk_engine(Path(folder), max_bytes="20000")
    for round in range(1_000_000):
        engine.keep(numbers(first + round % 40, 12))
        engine.cache.poll()
        engine.found(numbers(round % 40, 12))
        num_rounds.value = round


def test_two_servers_share_a_folder_and_one_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    rounds = [context.Value("q", 0) for _ in range(2)]
    servers = [
        context.Process(target=serve_for_ever, args=(str(tmp_path), first, num_rounds))
        for first, num_rounds in zip((0, 20), rounds, strict=True)
    ]
    for server in servers:
        server.start()
    wait_for(lambda: all(num_rounds.value > 2 * 40 for num_rounds in rounds) and len(files(tmp_path)) > 20)
    for server in servers:
        assert server.is_alive(), "each serve checks every byte it reuses"
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.join()
    engine = disk_engine(tmp_path, max_bytes="20000")
    assert sum(engine.found(numbers(first, 12)) for first in range(40)) > 0
    assert tier(engine).num_ignored_files == 0, "a kill leaves no half file under a block's name"
    assert tier(engine).num_bytes <= 20000
    engine.cache.close()


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    """Before anything is written; and what no system call finds a place for is a refusal, not a file that is gone."""
    (tmp_path / "file").write_text("")
    for folder, reason in ((tmp_path / "file" / "below", "Not a directory"), (Path("/proc/none"), "No such file")):
        engine = Engine(options={"path": str(folder)})
        (warning,) = engine.warnings
        assert str(folder) in warning
        assert reason in warning
        engine.keep(numbers(0, 12))
        assert engine.found(numbers(0, 12)) == 12, "in memory"
        engine.cache.close()
        assert tier(engine).num_failures >= 1


def test_a_folder_that_others_remove_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Path] = []

    def write_late(folder: Path, *words: Any) -> int:
        if not removed:
            removed.append(folder)
            shutil.rmtree(folder)
        return write_block(folder, *words)

    monkeypatch.setattr(disk, "write_block", write_late)
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 12))
    engine.cache.close()
    assert removed
    assert not engine.warnings
    assert len(files(tmp_path)) == 3
