"""What a full queue refuses before it reads a request, and what goes before that refusal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ortserve.gateway.access.access import Access
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.errors import OverloadedError
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, saying

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/responses": {"input": "hi"},
}
REFUSED: list[int] = []  # one for each that the server was told of
KEYS: dict[str, dict[str, Any]] = {"all": {}, "none": {"models": ["another"]}, "hurried": {"requests_per_minute": 1}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    file.write_text("".join(_line(name, rules) for name, rules in KEYS.items()))
    driver = make_driver(saying("hello"))
    with running(driver, access=Access(file=Path(file)), refused=lambda: REFUSED.append(1)) as started:
        yield started


@pytest.fixture
def full(server: Running) -> Iterator[httpx.Client]:
    """A client of the server, whose queue is full."""
    server.driver.full = OverloadedError("9 requests are waiting", retry_after_s=1.25, limit=("requests", 9))
    with httpx.Client(base_url=server.url, headers=_bearer("all")) as client:
        yield client
    server.driver.full = None


@pytest.mark.parametrize("path", BODIES)
def test_a_full_queue_refuses_whatever_else_the_body_says(
    full: httpx.Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelService, "start_chat", _must_not_be_called)
    monkeypatch.setattr(ModelService, "read_prompts", _must_not_be_called)
    for more in ({}, {"temperature": "hot", "model": "scripted"}, {"model": None}):
        reply = full.post(path, json={**BODIES[path], **more})
        assert reply.status_code == 429, reply.text
        assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("2", "1250")
        assert "9 requests are waiting" in reply.json()["error"]["message"]
        limits = "anthropic-ratelimit-requests-limit" if path == "/v1/messages" else "x-ratelimit-limit-requests"
        assert reply.headers[limits] == "9"


def test_what_is_asked_before_there_is_room(full: httpx.Client) -> None:
    path, body = "/v1/chat/completions", BODIES["/v1/chat/completions"]

    def refusal(key: str, **changes: Any) -> tuple[int, str | None]:
        reply = full.post(path, headers=_bearer(key), **({"json": {"model": "scripted", **body}} | changes))
        return reply.status_code, reply.json()["error"]["code"]

    assert refusal("stranger") == (401, "invalid_api_key")
    assert refusal("none") == (403, "model_not_found")
    assert refusal("all", json={**body, "model": "nobody"}) == (404, "model_not_found")
    assert refusal("all", json={**body, "model": 3})[0] == 400
    assert refusal("all", json=None, content=b"{")[0] == 400
    assert refusal("all", json=None, content=b"[1]")[0] == 400
    assert refusal("hurried") == (429, "rate_limit_exceeded")
    slow_down = full.post(path, headers=_bearer("hurried"), json=body)
    assert "requests per minute" in slow_down.json()["error"]["message"]  # the key's own limit, which goes before


def test_what_makes_no_text_is_answered_all_the_same(full: httpx.Client) -> None:
    counted = full.post("/v1/messages/count_tokens", json={"model": "scripted", "messages": MESSAGES})
    assert counted.status_code == 200
    assert full.get("/v1/models").status_code == 200


def test_a_refusal_is_counted_under_its_model_and_leaves_nothing_behind(server: Running, full: httpx.Client) -> None:
    num_submitted = len(server.driver.submitted)
    assert full.post("/v1/completions", json={"prompt": "hi"}).status_code == 429
    series = 'ortserve_errors_total{code="rate_limit_exceeded",route="/v1/completions"}'
    assert any(line.startswith(series) for line in full.get("/metrics").text.splitlines())
    server.driver.full = None
    assert full.post("/v1/completions", json={"model": "scripted", "prompt": "hi"}).status_code == 200
    assert len(server.driver.submitted) == num_submitted + 1


def test_refusals_of_a_full_queue_are_told_of_and_no_others(full: httpx.Client) -> None:
    path, body = "/v1/chat/completions", BODIES["/v1/chat/completions"]
    REFUSED.clear()
    for _ in range(3):
        assert full.post(path, json=body).status_code == 429
    assert len(REFUSED) == 3
    assert full.post(path, json=body, headers=_bearer("stranger")).status_code == 401
    assert full.post(path, json={**body, "model": "nobody"}).status_code == 404
    assert full.get("/v1/models").status_code == 200
    assert len(REFUSED) == 3


async def _must_not_be_called(*_: object, **__: object) -> None:
    raise AssertionError("the request was read")


def _line(name: str, rules: dict[str, Any]) -> str:
    return (
        json.dumps({"name": name, "hash": f"sha256:{hashlib.sha256(_key(name).encode()).hexdigest()}", **rules}) + "\n"
    )


def _bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {_key(name)}"}


def _key(name: str) -> str:
    return f"sk-{name}"
