"""The log on a file that refuses for a while: nothing fails, and what was lost is told."""

from __future__ import annotations

import errno
import io
import json
import sys
from collections.abc import Iterator

import pytest

from ortserve.gateway.logs import configure_logs, log


class Disk(io.StringIO):
    """A file on a disk that may be full."""

    is_full = False

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    configure_logs("info")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log().info("first")  # whatever was lost before is told here
    yield
    configure_logs("error")


def test_lines_that_are_lost_are_counted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    monkeypatch.setattr(sys, "stderr", disk)
    log().info("one")
    disk.is_full = True
    log().info("two")
    log().error("three")
    disk.is_full = False
    log().info("four")
    log().info("five")
    lines = [json.loads(line) for line in disk.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["one", "log_lines_lost", "four", "five"]
    assert lines[1]["lines"] == 2
    assert lines[1]["timestamp"][-1] == lines[0]["timestamp"][-1] == "Z"


def test_a_file_that_is_closed_or_missing_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for file in (closed, None):
        monkeypatch.setattr(sys, "stderr", file)
        log().info("lost")
