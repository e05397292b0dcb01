"""What the habits would run, without running it: the environment decides host, port and model."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def planned(tmp_path: Path, *words: str, **environment: str) -> str:
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"HOST", "PORT", "MODEL", "MAKEFLAGS"}
    }
    line = ["make", "--dry-run", "-C", str(ROOT), *words, f"VENV={tmp_path / 'venv'}"]
    return subprocess.run(line, env=inherited | environment, check=True, capture_output=True, text=True).stdout


def test_serve_takes_host_port_and_model_from_the_environment(tmp_path: Path) -> None:
    plan = planned(tmp_path, "serve", HOST="0.0.0.0", PORT="81", MODEL="folder")
    assert "ortserve serve folder --host 0.0.0.0 --port 81" in plan
    assert "'.[cpu]'" in plan
    assert "test]" not in plan  # serving installs no tools
    assert "ortserve serve  --host 127.0.0.1 --port 8000" in planned(tmp_path, "serve")


def test_bench_aims_at_the_same_server(tmp_path: Path) -> None:
    plan = planned(tmp_path, "bench", HOST="::1", PORT="81", MODEL="folder")
    assert "--url http://[::1]:81 --model folder" in plan
    assert "--model" not in planned(tmp_path, "bench")


def test_an_existing_environment_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    for name in (".installed-serve", ".installed-test"):
        (tmp_path / "venv" / name).touch()
    plan = planned(tmp_path, "check", "test")
    assert "pip install" not in plan
    for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports", "pytest"):
        assert tool in plan


def test_help_names_every_habit(tmp_path: Path) -> None:
    plan = subprocess.run(["make", "-C", str(ROOT), "help"], check=True, capture_output=True, text=True).stdout
    for habit in ("serve", "test", "check", "bench", "venv", "reference", "clean"):
        assert f"\n{habit}\t" in plan
