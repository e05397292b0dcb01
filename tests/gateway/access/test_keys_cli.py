"""`ortserve keys`: its lines admit the keys it shows, and nothing on standard output is a secret."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.key_file import read_key_file
from ortserve.gateway.cli import main


def test_a_new_key_opens_a_server_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["keys", "new", "--name", "ci", "--tenant", "acme", "--models", "a", "b", "--requests-per-minute", "60"]
    assert main(words) == 0
    shown = capsys.readouterr()
    key = shown.err.strip()
    assert key not in shown.out
    path = tmp_path / "keys.jsonl"
    path.write_text(shown.out)
    grant = Access(file=path).ring.find(key.encode())
    assert grant is not None
    assert (grant.name, grant.models, grant.limits.requests_per_minute) == ("ci", frozenset({"a", "b"}), 60)
    assert main(words) == 0
    assert capsys.readouterr().err.strip() != key


def test_a_key_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("my-own-key-of-some-length\n"))
    assert main(["keys", "hash", "--name", "mine", "--scopes", "admin", "inference"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "my-own" not in shown.out
    path = tmp_path / "keys.jsonl"
    path.write_text(shown.out)
    (grant,) = read_key_file(path)
    assert grant.scopes == {"admin", "inference"}
    assert Access(file=path).ring.find(b"my-own-key-of-some-length") == grant


def test_what_no_server_would_take(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert main(["keys", "hash", "--name", "x"]) == 2
    assert "5 characters" in capsys.readouterr().err
    assert main(["keys", "new", "--name", "x", "--priority", "1000"]) == 2
    shown = capsys.readouterr()
    assert "$.priority" in shown.err
    assert shown.out == ""
