"""Keys over HTTP: who may do what, files that change under a running server, and secrets that stay secret."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.key_file import KeyFileError
from ortserve.gateway.access.tenancy import named_tenant, salt_of
from ortserve.gateway.logs import configure_logs
from tests.gateway.access.test_key_file import file_of, line
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, saying
from tests.waiting import wait_for

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
MESSAGE = {**CHAT, "max_tokens": 5}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}".strip()}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return file_of(
        tmp_path,
        line("user", tenant="acme"),
        line("other", tenant="acme"),
        line("elsewhere", models=["another"]),
        line("boss", scopes=["admin"]),
        line("both", scopes=["admin", "inference"], priority=7),
    )


@pytest.fixture
def closed(keys: Path) -> Iterator[tuple[Running, httpx.Client]]:
    access = Access(file=keys)
    with running(make_driver(saying("hi")), access=access) as server, httpx.Client(base_url=server.url) as http:
        yield server, http


def test_scopes(closed: tuple[Running, httpx.Client]) -> None:
    _, http = closed

    def statuses(key: str) -> list[int]:
        headers = bearer(key)
        return [
            http.post("/v1/chat/completions", json=CHAT, headers=headers).status_code,
            http.get("/v1/files", headers=headers).status_code,
            http.get("/admin/cache/stats", headers=headers).status_code,
            http.get("/metrics", headers=headers).status_code,
        ]

    assert statuses("user") == [200, 200, 403, 200]
    assert statuses("boss") == [403, 403, 200, 200]
    assert statuses("both") == [200, 200, 200, 200]
    assert statuses("nobody") == [401, 401, 401, 401]
    assert statuses("") == [401, 401, 401, 401]


def test_metrics_may_be_the_administrators_alone(keys: Path) -> None:
    for access in (Access(file=keys), Access(admin_key="boss")):
        with running(make_driver(saying("hi")), access=access, admin_metrics=True) as server:
            read = {
                key: httpx.get(server.url + "/metrics", headers=bearer(key)).status_code for key in ("boss", "user", "")
            }
        assert read == {"boss": 200, "user": 401 if access.ring.is_open else 403, "": 401}


def test_envelopes(closed: tuple[Running, httpx.Client]) -> None:
    _, http = closed
    refused = http.post("/v1/chat/completions", json=CHAT, headers=bearer("boss"))
    assert refused.json()["error"] == {
        "message": "You have insufficient permissions for this operation. Missing scopes: inference.",
        "type": "invalid_request_error",
        "param": None,
        "code": "insufficient_permissions",
    }
    for key, status, word in (("no", 401, "authentication_error"), ("boss", 403, "permission_error")):
        reply = http.post("/v1/messages", json=MESSAGE, headers={"x-api-key": key})
        assert reply.status_code == status
        assert reply.json()["type"] == "error"
        assert reply.json()["error"]["type"] == word


def test_every_route_but_liveness_and_health_needs_a_key(closed: tuple[Running, httpx.Client]) -> None:
    _, http = closed
    document = http.get("/openapi.json", headers=bearer("user")).json()
    is_open = set()
    for path, methods in document["paths"].items():
        for method in methods:
            status = http.request(method, path.replace("{", "").replace("}", "")).status_code
            assert status in (200, 401), (method, path)
            if status == 200:
                is_open.add(path)
    assert is_open == {"/", "/health", "/health/live", "/health/ready"}
    assert len(document["paths"]) > 20


def test_strangers_learn_of_health_only_whether(closed: tuple[Running, httpx.Client]) -> None:
    server, http = closed
    assert http.get("/health").json() == http.get("/health", headers=bearer("no")).json() == {"status": "ok"}
    assert http.get("/health", headers=bearer("user")).json()["model"] == "scripted"
    assert http.get("/health/ready").json() == http.get("/health/live").json() == {"status": "ok"}
    server.driver.close()
    assert http.get("/health").status_code == http.get("/health/ready").status_code == 503
    assert http.get("/health/live").status_code == 200  # a restart would not help one that drains


def test_models_that_a_key_may_not_use(closed: tuple[Running, httpx.Client]) -> None:
    server, http = closed
    headers = bearer("elsewhere")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "scripted", "prompt": "x"}),
        ("/v1/responses", {"model": "scripted", "input": "x"}),
        ("/v1/responses", {"input": "x"}),  # the model that is there
        ("/v1/responses/input_tokens", {"input": "x"}),
        ("/v1/tokenize", {"prompt": "x"}),
        ("/v1/detokenize", {"tokens": [1]}),
        ("/v1/messages", MESSAGE),
        ("/v1/messages/count_tokens", CHAT),
        ("/v1/embeddings", {"model": "scripted", "input": "x"}),
        ("/v1/rerank", {"model": "scripted", "query": "x", "documents": ["y"]}),
    ]
    for path, body in calls:
        reply = http.post(path, json=body, headers=headers)
        assert (path, reply.status_code) == (path, 403)
        assert "does not have access to model `scripted`" in reply.json()["error"]["message"]
        nameless = http.post(path, json={**body, "model": ""}, headers=headers)
        assert (path, nameless.status_code) == (path, 404), "no way around it"
    assert http.get("/tokenizer_info?model=", headers=headers).status_code == 404
    assert http.get("/v1/models", headers=headers).json()["data"] == []
    assert http.get("/v1/models/scripted", headers=headers).status_code == 403
    unknown = http.post("/v1/chat/completions", json={**CHAT, "model": "x"}, headers=headers)
    assert unknown.status_code == 404
    assert not server.driver.submitted


def test_keys_of_one_tenant_share_a_salt_and_bring_their_priority(closed: tuple[Running, httpx.Client]) -> None:
    server, http = closed
    for key in ("user", "other", "both"):
        http.post("/v1/chat/completions", json=CHAT, headers=bearer(key))
    http.post("/v1/messages", json=MESSAGE, headers=bearer("both"))
    first, second, third, fourth = server.driver.submitted
    assert first.cache.salt == second.cache.salt == salt_of(named_tenant("acme"))
    assert third.cache.salt == salt_of(named_tenant("both"))
    assert [one.priority for one in (first, third, fourth)] == [0, 7, 7]


def test_an_empty_file_admits_nobody(tmp_path: Path) -> None:
    access = Access(file=file_of(tmp_path))
    with running(make_driver(saying("hi")), access=access) as server:
        for headers in ({}, bearer(""), bearer("x")):
            assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, headers=headers).status_code == 401
        assert httpx.get(f"{server.url}/admin/cache/stats").status_code == 404


def test_a_file_joins_the_keys_of_flags(tmp_path: Path) -> None:
    path = file_of(tmp_path, line("user"))
    ring = Access(api_key="mine", admin_key="boss", file=path).ring
    assert [ring.caller(key) is not None for key in (b"mine", b"boss", b"user", b"x")] == [True, True, True, False]
    with pytest.raises(KeyFileError, match="key 'user': its hash is that of --api-key"):
        Access(api_key="user", file=path)


def replace_file(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    os.replace(beside, path)  # noqa: PTH105


def test_a_file_that_changes_is_read_again_and_a_broken_one_changes_nothing(
    closed: tuple[Running, httpx.Client], keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, http = closed

    def status(key: str) -> int:
        return http.get("/v1/models", headers=bearer(key)).status_code

    lines: list[str] = []

    def refusals() -> list[dict[str, Any]]:
        lines.extend(capsys.readouterr().err.splitlines())
        return [json.loads(one) for one in lines if "api_keys_refused" in one]

    configure_logs("info")
    try:
        replace_file(keys, line("fresh") + "\n")
        wait_for(lambda: status("fresh") == 200)
        assert status("user") == 401
        for number, text in enumerate((line("later") + '\n{"name": "broken"}\n', None), 1):
            keys.unlink() if text is None else replace_file(keys, text)
            wait_for(lambda number=number: len(refusals()) == number)  # type: ignore[misc]
            assert status("fresh") == 200
            assert status("later") == 401
        refused = refusals()
        assert [one["kept"] for one in refused] == ["the keys read before"] * 2
        assert "line 2, key 'broken'" in refused[0]["error"]
        assert "cannot be read" in refused[1]["error"]
        replace_file(keys, line("back") + "\n")
        wait_for(lambda: status("back") == 200)
    finally:
        configure_logs("error")


def test_no_key_is_ever_logged(closed: tuple[Running, httpx.Client], capsys: pytest.CaptureFixture[str]) -> None:
    _, http = closed
    configure_logs("debug")
    try:
        for key in ("user", "a-stranger-with-a-secret"):
            http.post("/v1/chat/completions", json=CHAT, headers=bearer(key))
            http.post("/v1/messages", json=MESSAGE, headers={"x-api-key": key})
            http.get("/admin/cache/stats", headers=bearer(key))
        lines: list[str] = []

        def logged() -> str:
            lines.append(capsys.readouterr().err)
            return "".join(lines)

        wait_for(lambda: logged().count('"event": "request"') == 6)  # the last line follows its reply
    finally:
        configure_logs("error")
    text = logged()
    assert text.count('"event": "request"') == 6
    assert "stranger" not in text
    assert "Bearer" not in text
