"""What logs may hold: no key ever, and no prompt unless that was asked for."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.grant import digest_of
from ortserve.gateway.logs import configure_logs
from ortserve.runtime.errors import EngineError
from tests.gateway.access.test_key_file import file_of, line
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying

FLAG_KEY, ADMIN_KEY, FILE_KEY, WRONG_KEY = (f"sk-{name}-5f3a9c" for name in ("flag", "admin", "file", "wrong"))
KEYS = (FLAG_KEY, ADMIN_KEY, FILE_KEY, WRONG_KEY)
PROMPT, REPLY = "the-heron-at-dusk", "a-quiet-pond"
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}]}


@pytest.fixture
def debugging() -> Iterator[None]:
    configure_logs("debug")
    yield
    configure_logs("error")


def ask_everything(folder: Path, *, log_prompts: bool) -> None:
    """Requests of all kinds, good ones and bad ones, with every key in every place where keys are sent."""
    keys = file_of(folder, line(FILE_KEY).replace(f'"{FILE_KEY}"', '"named"', 1))
    access = Access(api_key=FLAG_KEY, admin_key=ADMIN_KEY, file=keys)
    driver = make_driver(saying(REPLY))
    with (
        running(driver, access=access, log_prompts=log_prompts) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        for key in KEYS:
            for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}, {"authorization": key}):
                http.post("/v1/chat/completions", json=CHAT, headers=headers)
                http.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers)
                http.post("/v1/chat/completions", content=f'{{"messages": [{PROMPT}', headers=headers)
                http.post("/v1/chat/completions", json={**CHAT, "temperature": PROMPT}, headers=headers)
                http.get(f"/v1/models?api_key={key}", headers=headers)
                http.get(f"/nowhere?key={key}", headers=headers)
            warm = {"messages": CHAT["messages"], "api_key": key}
            http.post("/admin/cache/warm", json=warm, headers={"authorization": f"Bearer {ADMIN_KEY}"})
        driver.refusal = EngineError("the graph failed")
        http.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {FLAG_KEY}"})
        driver.refusal = None
        driver.script = broken
        http.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {FLAG_KEY}"})
        with socket.create_connection(("127.0.0.1", server.port)) as connection:  # what the server's library refuses
            connection.sendall(f"GET / HTTP/1.1\r\nauthorization {FLAG_KEY}\r\n\r\n".encode())
            with contextlib.suppress(OSError):
                connection.recv(100)
        keys.write_text(f'{{"name": "x", "hash": "{FILE_KEY}"')


def broken(_: object) -> list[list[int]]:
    """Tokens that no tokenizer has."""
    return [[10**6]]


@pytest.mark.usefixtures("debugging")
def test_logs_have_no_key_and_no_prompt(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ask_everything(tmp_path, log_prompts=False)
    logged = "".join(capfd.readouterr())
    assert logged.count('"event": "request"') > 50
    for secret in (*KEYS, PROMPT, REPLY):
        assert secret not in logged, secret
    for key in KEYS:
        assert digest_of(key.encode()).hex()[:32] not in logged


@pytest.mark.usefixtures("debugging")
def test_prompts_are_logged_when_that_is_asked_for_and_keys_are_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ask_everything(tmp_path, log_prompts=True)
    logged = "".join(capfd.readouterr())
    assert PROMPT in logged
    for secret in (*KEYS, REPLY):
        assert secret not in logged, secret
