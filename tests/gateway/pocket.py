"""The bundled model behind a real server with a prompt cache, and how tests talk to it. Knows no test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ortserve.gateway.http.server import Limits
from ortserve.gateway.served.service import open_service
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.opening import open_driver
from tests.gateway.running import serving

ADMIN = {"authorization": "Bearer boss"}
RULES = "Answer in one short sentence. Be polite, and say so when you do not know the answer. " * 2
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": RULES},
    {"role": "user", "content": "What is 23 + 58?"},
]


def open_pocket(folder: Path, **options: Any) -> Driver:
    return open_driver(folder, EngineConfig(max_rows=4, num_threads=1, kv_memory=2**26, **options))


@contextmanager
def serving_pocket(folder: Path, **options: Any) -> Iterator[str]:
    """The address of a server with the administrator's key `boss`; `options` are the engine's."""
    driver = open_pocket(folder, **{"prompt_cache": "prefix", "prompt_cache_memory": 2**26, **options})
    limits = Limits(drain_s=1.0)
    with serving(lambda: open_service(folder, driver), driver.close, limits, admin_key="boss") as (port, _):
        yield f"http://127.0.0.1:{port}"


def chat(http: httpx.Client, *, key: str | None = None, **fields: Any) -> dict[str, Any]:
    body = {"model": "pocket", "messages": CONVERSATION, "temperature": 0, "max_tokens": 24, **fields}
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    response = http.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    settle(http)
    return reply


def settle(http: httpx.Client) -> None:
    """Wait for the last tokens of a finished request: they are published by the step after it.

    The engine answers between two steps, so when it has answered twice there has been one.
    """
    for _ in range(2):
        assert http.get("/admin/cache/entries?limit=0", headers=ADMIN).status_code == 200


def text_of(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def cached(reply: dict[str, Any]) -> int:
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])


def written(reply: dict[str, Any]) -> int:
    return int(reply["usage"]["prompt_tokens_details"]["cache_write_tokens"])
