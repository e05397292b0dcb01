"""Unix sockets with permissions, what a killed server leaves behind, sockets that are handed over, and half options."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ortserve.gateway.http.front import open_tls
from ortserve.gateway.transport.listener import AddressError, inherited, listen_at
from ortserve.runtime.errors import ConfigurationError, OrtserveError
from tests.gateway.configuration.test_options import resolved
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying


def test_a_unix_socket_answers_has_its_mode_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    old = os.umask(0)
    try:
        listener = listen_at(path, 0o640)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with (
        running(make_driver(saying("hello")), listener=listener),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as http,
    ):
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        with pytest.raises(AddressError, match="is in use: stop the other server or choose another --unix"):
            listen_at(path, 0o600)
    assert not path.exists()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_server_leaves_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    listener = listen_at(path, 0o600)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(AddressError, match="exists and is not a socket"):
        listen_at(path, 0o600)
    assert path.read_text() == "mine"
    for wrong in (tmp_path / "none" / "s.sock", tmp_path / ("a" * 200)):
        with pytest.raises(AddressError, match="choose another --unix"):
            listen_at(wrong, 0o600)


def test_a_path_that_is_another_server_s_by_now_is_left(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    first = listen_at(path, 0o600)
    path.unlink()
    second = listen_at(path, 0o600)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


# As systemd starts a service: the socket is number 3, and the variables name the process itself.
ACTIVATED = """
import os, socket, sys
from ortserve.gateway.transport.listener import inherited
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": sys.argv[2]}
listener = inherited(os.environ, stall_s=5)
assert "LISTEN_FDS" not in os.environ
print(listener.authority)
"""


def activated(sock: socket.socket, count: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ACTIVATED, str(sock.fileno()), count],
        pass_fds=[sock.fileno()],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_socket_of_systemd_is_taken_and_a_wrong_one_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as silent:
        done = activated(server, "1")
        assert done.stdout.strip() == f"127.0.0.1:{server.getsockname()[1]}", done.stderr
        assert "one listening socket can be handed over" in activated(server, "2").stderr
        assert "does not listen" in activated(silent, "1").stderr


def test_variables_of_another_process_mean_nothing() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "OTHER": "x"}
    assert inherited(environment, stall_s=5) is None
    assert environment == {"OTHER": "x"}


@pytest.mark.parametrize("words", [("--tls-cert", "c"), ("--tls-key", "k"), ("--tls-client-ca", "a")])
def test_half_of_tls_is_refused(words: tuple[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=f"{words[0]} needs both --tls-cert and --tls-key"):
        open_tls(resolved(*words).settings.tls)


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/path", "*.example", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    from ortserve.gateway.options.edge import edge_options

    settings = resolved("--cors-origins", f"https://a.example,{origin or 'x'}").settings
    with pytest.raises(OrtserveError, match="is not an origin such as"):
        edge_options(settings.edge, settings.limits)
