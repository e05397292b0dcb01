"""The disk tier as one file: what goes out comes back, and nothing else comes in."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from ortserve.plugins.prefix_cache.archive import Moved, export_blocks, import_blocks
from tests.plugins.engine import disk_engine, numbers


def filled(folder: Path) -> None:
    engine = disk_engine(folder)
    engine.keep(numbers(0, 12), b"one")
    engine.keep(numbers(50, 8), b"two")
    engine.cache.close()


def test_what_is_exported_is_found_elsewhere(tmp_path: Path) -> None:
    filled(tmp_path / "here")
    archive = tmp_path / "cache.tar"
    assert export_blocks(tmp_path / "here", archive) == Moved(5, 0)
    assert import_blocks(archive, tmp_path / "there") == Moved(5, 0)
    assert import_blocks(archive, tmp_path / "there") == Moved(5, 0)
    engine = disk_engine(tmp_path / "there")
    assert engine.found(numbers(0, 12), b"one") == 12
    assert engine.found(numbers(50, 8), b"two") == 8
    assert engine.found(numbers(50, 8), b"one") == 0
    engine.cache.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.tar", "here", "there"]


def test_damaged_blocks_stay_behind(tmp_path: Path) -> None:
    filled(tmp_path / "here")
    first, *_ = sorted((tmp_path / "here").rglob("*.kv"))
    first.write_bytes(first.read_bytes()[:-1])
    assert export_blocks(tmp_path / "here", tmp_path / "cache.tar") == Moved(4, 1)


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    filled(tmp_path / "here")
    sound = next((tmp_path / "here").rglob("*.kv")).read_bytes()
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name, data in (("../../outside.kv", sound), ("/outside.kv", b"not a block")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.kv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert import_blocks(tmp_path / "evil.tar", tmp_path / "in" / "folder") == Moved(1, 2)
    assert len(list((tmp_path / "in" / "folder").glob("*/*/*.kv"))) == 1
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["folder"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello" * 1000)
    with pytest.raises(ValueError, match="not an exported prompt cache"):
        import_blocks(tmp_path / "text", tmp_path / "there")
    with pytest.raises(FileNotFoundError):
        import_blocks(tmp_path / "absent", tmp_path / "there")
    assert export_blocks(tmp_path / "absent", tmp_path / "empty.tar") == Moved(0, 0)
