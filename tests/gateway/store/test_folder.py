"""The folder of a server that keeps nothing: made for the first file, gone with the server, and never left for long."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ortserve.gateway.store.folder import PREFIX, PassingFolder
from ortserve.gateway.store.state import State

HOLDER = """
import sys
from ortserve.gateway.store.folder import PassingFolder
folder = PassingFolder()
(folder.path / "file").write_bytes(b"data")
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_made_for_the_first_file_and_goes_with_its_holder(temporary: Path) -> None:
    for is_closed in (True, False):
        folder = PassingFolder()
        assert folder.entries() == list(temporary.iterdir()) == []
        (folder.path / "file").write_bytes(b"data")
        assert list(temporary.iterdir()) == [folder.path]
        assert folder.entries() == [folder.path / "file"]
        if is_closed:
            folder.close()
            folder.close()
        del folder
        gc.collect()
        assert list(temporary.iterdir()) == []


def test_a_server_without_files_has_no_folder(temporary: Path) -> None:
    state = State()
    state.files.remove_strays()
    assert list(temporary.iterdir()) == []
    assert state.files.partial_path("file_1").parent.parent == temporary
    state.files.folder.close()
    state.database.close()


def test_what_a_killed_process_leaves_the_next_one_removes_and_nothing_else(temporary: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", HOLDER]
    with (
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as killed,
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as living,
    ):
        assert killed.stdout is not None
        assert living.stdout is not None
        left, used = Path(killed.stdout.readline().strip()), Path(living.stdout.readline().strip())
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        foreign = temporary / "ortserve-other"
        foreign.mkdir()
        link, file = temporary / f"{PREFIX}link", temporary / f"{PREFIX}file"
        link.symlink_to(foreign)
        file.write_bytes(b"")
        assert (left / "file").read_bytes() == b"data"
        PassingFolder()
        assert set(temporary.iterdir()) == {used, foreign, link, file}
        assert (used / "file").read_bytes() == b"data"
        living.communicate("")
    assert not used.exists()


def test_another_user_s_is_left_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = temporary / f"{PREFIX}theirs"
    theirs.mkdir()
    monkeypatch.setattr("os.geteuid", lambda: os.stat(theirs).st_uid + 1)  # noqa: PTH116
    PassingFolder()
    assert theirs.exists()
    monkeypatch.undo()
