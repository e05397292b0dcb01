"""The tier on disk when all is well: restarts, sharing, clearing and the size bound."""

from __future__ import annotations

from pathlib import Path

from ortserve.plugins.api import HitChange, HitState
from tests.plugins.engine import Engine, disk_engine, files, numbers, tier
from tests.waiting import wait_for


def test_a_restart_finds_whole_blocks_again(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 14), b"salt")
    engine.restart()
    assert len(files(tmp_path)) == 3
    hit = engine.cache.lookup(engine.query(numbers(0, 14), b"salt"))
    assert hit.state is HitState.LOADING
    engine.cache.release(hit)
    assert engine.found(numbers(0, 14), b"salt") == 12
    assert engine.found(numbers(0, 14), b"other") == 0
    assert tier(engine).num_reads == 3
    assert engine.found((*numbers(0, 6), 9)) == 0
    engine.cache.close()


def test_what_may_be_kept_in_memory_only_never_reaches_the_disk(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.serve(engine.query(numbers(0, 12), durable=False))
    assert engine.found(numbers(0, 12), durable=False) == 12
    engine.restart()
    assert engine.found(numbers(0, 12)) == 0
    assert files(tmp_path) == []
    engine.cache.close()


def test_a_durable_request_with_the_same_tokens_takes_them_to_the_disk(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.serve(engine.query(numbers(0, 12), durable=False))
    engine.keep(numbers(0, 16))
    engine.restart()
    assert engine.found(numbers(0, 16), durable=False) == 16, "reading is not keeping"
    engine.cache.close()


def test_a_foreign_prefix_costs_the_disk_nothing(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 12), b"mine")
    engine.restart()
    for tokens, salt in ((numbers(0, 12), b"yours"), (numbers(50, 12), b"yours"), (numbers(50, 12), b"mine")):
        assert engine.found(tokens, salt) == 0
    assert tier(engine).num_reads == 0
    engine.cache.close()


def test_two_requests_wait_for_one_read(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 12))
    engine.restart()
    query = engine.query(numbers(0, 12))
    hits = [engine.cache.lookup(query), engine.cache.lookup(query)]
    assert [hit.state for hit in hits] == [HitState.LOADING] * 2
    changes: list[HitChange] = []
    while len(changes) < 2:
        changes += engine.cache.poll()
    for hit in hits:
        engine.cache.release(hit)
    assert engine.found(numbers(0, 12)) == 12
    assert tier(engine).num_reads == 3
    engine.cache.close()


def test_a_short_arena_reads_the_beginning(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 40))
    engine.cache.close()
    small = Engine(num_blocks=4, options={"path": str(tmp_path)})
    assert small.found(numbers(0, 40)) == 16
    assert small.cache.evict(9) == 4
    small.cache.close()


def test_a_cleared_salt_does_not_come_back(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 12), b"a")
    engine.keep(numbers(0, 12), b"b")
    engine.restart()
    assert engine.cache.clear(b"a") == 3
    assert engine.found(numbers(0, 12), b"a") == 0
    engine.restart()
    assert engine.found(numbers(0, 12), b"a") == 0
    assert engine.found(numbers(0, 12), b"b") == 12
    engine.cache.clear(None)
    engine.restart()
    assert files(tmp_path) == []
    engine.cache.close()


def test_clearing_everything_also_clears_what_others_wrote(tmp_path: Path) -> None:
    engine, other = disk_engine(tmp_path), disk_engine(tmp_path)
    other.keep(numbers(0, 12), b"new")
    other.cache.close()
    assert len(files(tmp_path)) == 3
    engine.cache.clear(None)
    wait_for(lambda: not files(tmp_path))
    engine.cache.close()


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 4))
    engine.cache.close()
    assert files(tmp_path)[0].parent.stat().st_mode & 0o077 == 0


def test_the_bound_holds_and_children_go_first(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 4))
    wait_for(lambda: tier(engine).num_writes == 1)
    size = tier(engine).num_bytes
    engine.cache.close()
    engine = disk_engine(tmp_path, max_bytes=str(size * 6))
    engine.keep(numbers(0, 20))
    wait_for(lambda: tier(engine).num_writes == 4)  # the first block was there
    engine.wall.now += 1.0
    engine.keep(numbers(50, 12))
    engine.restart()
    assert tier(engine).num_bytes <= size * 6
    assert engine.found(numbers(50, 12)) == 12
    assert engine.found(numbers(0, 20)) in (8, 12)
    engine.cache.close()


def test_what_is_used_outlives_what_is_new(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 4))
    wait_for(lambda: tier(engine).num_writes == 1)
    size = tier(engine).num_bytes
    engine.cache.close()
    engine = disk_engine(tmp_path, max_bytes=str(size * 3))
    for first in range(10, 60, 10):
        engine.wall.now += 100.0
        assert engine.found(numbers(0, 4)) == 4
        engine.keep(numbers(first, 4))
        wait_for(lambda: not engine.cache.poll() and tier(engine).num_writes >= first // 10)  # noqa: B023
    engine.restart()
    assert engine.found(numbers(0, 4)) == 4
    engine.cache.close()


def test_entries_list_both_tiers(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    engine.keep(numbers(0, 10))
    wait_for(lambda: tier(engine).num_writes == 2)
    entries = list(engine.cache.entries())
    assert [(entry.tier, entry.depth, entry.num_tokens) for entry in entries] == [
        ("memory", 0, 4),
        ("memory", 4, 4),
        ("memory", 8, 2),
        ("disk", 0, 4),
        ("disk", 4, 4),
    ]
    assert [entry.key for entry in entries[3:]] == [entry.key for entry in entries[:2]]
    assert entries[4].parent == entries[3].key
    engine.cache.close()
