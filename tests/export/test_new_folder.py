"""A folder appears complete or not at all, whatever happens while it is made."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from ortserve.export.errors import ExportError
from ortserve.export.folder.new_folder import new_folder, remove_partial_folders
from ortserve.export.graph.data_file import DataFile
from ortserve.export.publish import export_checkpoint
from tests.export.checkpoints import write_checkpoint


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _make(destination: Path, content: str, *, force: bool = False) -> None:
    with new_folder(destination, force=force, marker="marker") as folder:
        assert folder.parent == destination.parent  # a rename within one file system is atomic
        (folder / "marker").write_text(content)


def _make_half(destination: Path, error: BaseException) -> None:
    with new_folder(destination, force=False, marker="marker") as folder:
        (folder / "half").touch()
        raise error


def test_it_appears_under_its_name_and_nothing_else_remains(tmp_path: Path) -> None:
    _make(tmp_path / "deep" / "out", "first")
    assert _names(tmp_path / "deep") == ["out"]


def test_an_existing_folder_is_replaced_only_by_force_and_only_if_it_is_ours(tmp_path: Path) -> None:
    _make(tmp_path / "out", "first")
    with pytest.raises(ExportError, match=r"exists: choose another destination, or replace it with --force"):
        _make(tmp_path / "out", "second")
    _make(tmp_path / "out", "second", force=True)
    assert (tmp_path / "out" / "marker").read_text() == "second"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    with pytest.raises(ExportError, match="holds files but no marker, so --force does not replace it"):
        _make(tmp_path / "photos", "third", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is no folder"):
        _make(tmp_path / "file", "third", force=True)
    assert _names(tmp_path) == ["file", "out", "photos"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ExportError("bad"), ValueError("bug")])
def test_any_interruption_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        _make_half(tmp_path / "out", error)
    assert _names(tmp_path) == []


def test_a_replaced_folder_comes_back_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path / "out", "first")
    rename = Path.rename

    def fail_into_place(self: Path, target: Path) -> Path:
        if target.name == "out" and "marker" in _names(self) and (self / "marker").read_text() == "second":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(ExportError, match=r"cannot be written \(Input/output error\)"):
        _make(tmp_path / "out", "second", force=True)
    assert (tmp_path / "out" / "marker").read_text() == "first"
    assert _names(tmp_path) == ["out"]


def test_a_parent_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file cannot be written .*: choose another destination"):
        _make(tmp_path / "file" / "out", "first")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".out.partial-1-aa", ".outer.partial-1-aa", "out"):
        (tmp_path / name).mkdir()
    remove_partial_folders(tmp_path / "out")
    assert _names(tmp_path) == [".outer.partial-1-aa", "out"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), ExportError), (ValueError("bug"), ValueError)],
    ids=["disk full", "bug"],
)
def test_an_export_that_breaks_while_writing_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type[BaseException], force: bool
) -> None:
    source = write_checkpoint(tmp_path / "source")
    if force:
        export_checkpoint(source, tmp_path / "out", precision="fp32", verify=False)
    before = _names(tmp_path)
    append = DataFile.append

    def break_late(self: DataFile, name: str, *rest: Any) -> Any:
        if name.startswith("layers.1"):
            raise error
        return append(self, name, *rest)

    monkeypatch.setattr(DataFile, "append", break_late)
    with pytest.raises(raised) as caught:
        export_checkpoint(source, tmp_path / "out", precision="int8", force=force)
    if raised is ExportError:
        assert "No space left on device" in str(caught.value)
        assert "free space on the disk" in str(caught.value)
    assert _names(tmp_path) == before
