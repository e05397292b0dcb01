"""The units of examples/systemd: systemd accepts them, and a server started as they say keeps systemd's protocol."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.synthetic import expected, write_synthetic_text_model
from tests.gateway.test_serve import MAIN
from tests.waiting import PATIENCE_S

UNITS = Path(__file__).parents[2] / "examples" / "systemd"
# As systemd starts a service: the socket is number 3, and variables name the process itself.
START = f"""
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "WATCHDOG_PID": str(os.getpid())}}
os.execv(sys.executable, [sys.executable, "-c", {MAIN!r}, *sys.argv[2:]])
"""


def settings_of(unit: Path) -> dict[str, str]:
    """Its settings; none of those that are looked at comes twice."""
    lines = [line.partition("=") for line in unit.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return {name: value for name, _, value in lines}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = tmp_path / "ortserve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in UNITS.iterdir():
        text = (
            unit.read_text().replace("/opt/ortserve/bin/ortserve", str(program)).replace("User=ortserve", "User=root")
        )
        (tmp_path / unit.name).write_text(text.replace("Group=ortserve", "Group=root"))
    words = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS.iterdir())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stderr  # no warning about these units


def test_a_server_started_by_the_units_keeps_the_protocol(tmp_path: Path) -> None:
    service, listening = settings_of(UNITS / "ortserve.service"), settings_of(UNITS / "ortserve.socket")
    assert (service["Type"], service["NotifyAccess"], service["KillMode"]) == ("notify", "all", "mixed")
    assert "Accept" not in listening  # one process accepts
    assert int(service["TimeoutStopSec"]) > 30 + 5  # --drain, and the last frames
    config = tmp_path / "ortserve.toml"
    config.write_text("[engine]\nthreads = 1\n")
    model = write_synthetic_text_model(tmp_path / "synthetic")
    _, verb, *words = service["ExecStart"].replace("/etc/ortserve/ortserve.toml", str(config)).split()
    host, _, _ = listening["ListenStream"].partition(":")
    with managing(tmp_path / "notify") as manager, socket.create_server((host, 0)) as server:
        environment = os.environ | {"NOTIFY_SOCKET": str(manager.getsockname()), "WATCHDOG_USEC": "100000"}
        command = [sys.executable, "-c", START, str(server.fileno()), verb, str(model), *words]
        child = subprocess.Popen(command, env=environment, pass_fds=[server.fileno()], stdin=subprocess.DEVNULL)
        try:
            assert manager.recv(100).decode() == f"READY=1\nMAINPID={child.pid}"
            assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            with httpx.Client(base_url=f"http://{host}:{server.getsockname()[1]}") as http:
                fields = {"model": "synthetic", "prompt": "abc", "temperature": 0, "max_tokens": 5}
                reply = http.post("/v1/completions", json=fields)
            assert reply.json()["choices"][0]["text"] == expected(b"abc", 5)
            child.send_signal(signal.SIGTERM)
            while (word := manager.recv(100)) != b"STOPPING=1":
                assert word == b"WATCHDOG=1"
            assert child.wait(PATIENCE_S) == 0
        finally:
            child.kill()
            child.wait()


@contextlib.contextmanager
def managing(path: Path) -> Iterator[socket.socket]:
    """Systemd's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE_S)
        yield manager
