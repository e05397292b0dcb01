"""The operator's side of prompt caching: its key, warming, listing, clearing, files of prefixes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ortserve.gateway.access.tenancy import tenant_of
from ortserve.gateway.http.server import Limits
from ortserve.gateway.served.service import ModelService, open_service
from ortserve.gateway.served.warming import WarmingError, read_warm_file, warm_all
from tests.gateway.pocket import ADMIN, CONVERSATION, cached, chat, open_pocket, serving_pocket
from tests.gateway.running import serving
from tests.waiting import PATIENCE_S


@pytest.fixture(scope="module")
def url(pocket: Path) -> Iterator[str]:
    with serving_pocket(pocket) as url:
        yield url


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    """A client of an empty cache."""
    with httpx.Client(base_url=url) as client:
        assert client.post("/admin/cache/clear", headers=ADMIN).status_code == 200
        yield client


def test_administration_needs_its_own_key(url: str) -> None:
    paths = ["/admin/cache/stats", "/admin/cache/entries", "/admin/cache", "/admin", "/admin/x"]
    with httpx.Client(base_url=url) as http:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
            assert [http.get(path, headers=headers).status_code for path in paths] == [401] * 5
        assert [http.get(path, headers=ADMIN).status_code for path in paths] == [200, 200, 404, 404, 404]
        assert http.get("/admin/cache/stats", headers={"x-api-key": "boss"}).status_code == 200
        assert http.get("/admin/cache/clear", headers=ADMIN).status_code == 405


def test_without_an_admin_key_there_is_no_administration(pocket: Path) -> None:
    driver = open_pocket(pocket)
    limits = Limits(drain_s=1.0)
    with serving(lambda: open_service(pocket, driver), driver.close, limits, api_key="user") as (port, _):
        for key in ("user", "boss"):
            headers = {"authorization": f"Bearer {key}"}
            response = httpx.get(f"http://127.0.0.1:{port}/admin/cache/stats", headers=headers)
            assert response.status_code == 404
            assert response.json()["error"]["message"] == "Invalid URL (GET /admin/cache/stats)"


def test_warmed_prefixes_are_found_by_those_they_are_for(http: httpx.Client) -> None:
    body: dict[str, Any] = {"messages": CONVERSATION[:1], "ttl": "2h"}
    reply = http.post("/admin/cache/warm", json=body, headers=ADMIN).json()
    assert reply["num_pinned_tokens"] == reply["num_tokens"] > reply["num_cached_tokens"] == 0
    assert cached(chat(http)) >= reply["num_tokens"] - 1
    assert cached(chat(http, key="other")) == 0
    again = http.post("/admin/cache/warm", json={**body, "api_key": "third", "cache_salt": "s"}, headers=ADMIN).json()
    assert again["num_cached_tokens"] == 0
    assert cached(chat(http, key="third", cache_salt="s")) >= again["num_tokens"] - 1
    assert cached(chat(http, key="third")) == 0
    entries = http.get("/admin/cache/entries", headers=ADMIN).json()
    kept = [entry for entry in entries["data"] if entry["pinned_s"] is not None]
    assert 0 < len(kept) < entries["num_entries"]
    (first,) = http.get("/admin/cache/entries?limit=1", headers=ADMIN).json()["data"]
    assert first["key"] == entries["data"][0]["key"]
    cleared = http.post("/admin/cache/clear", json={"api_key": "third", "cache_salt": "s"}, headers=ADMIN).json()
    assert cleared["num_blocks"] > 0
    assert cached(chat(http, key="third", cache_salt="s")) == 0
    assert cached(chat(http)) > 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": CONVERSATION, "prompt": "x"}, "messages"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": [10**9]}, "prompt[0]"),
        ({"prompt": "x", "ttl": "2y"}, "ttl"),
        ({"prompt": "x " * 20_000}, "prompt"),
    ],
)
def test_refusals_of_warming(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    response = http.post("/admin/cache/warm", json=body, headers=ADMIN)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("limit", ["x", "-1", "1e3", "9" * 40])
def test_refusals_of_listing(http: httpx.Client, limit: str) -> None:
    assert http.get(f"/admin/cache/entries?limit={limit}", headers=ADMIN).status_code == 400


def test_a_file_of_prefixes(pocket: Path, tmp_path: Path) -> None:
    driver = open_pocket(pocket, prompt_cache="prefix", prompt_cache_memory=2**26)
    path = tmp_path / "warm.jsonl"
    lines = [{"messages": CONVERSATION[:1]}, {"prompt": "Once upon a time"}]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")

    async def warmed(service: ModelService) -> list[str | None]:
        tenant = tenant_of(b"")
        await warm_all(
            service,
            read_warm_file(
                path, service.vocabulary, whose=lambda key: tenant if key is None else tenant_of(key.encode())
            ),
        )
        service.pool.close()
        return [None if entry.pinned_s is None else entry.tier for entry in driver.cache_entries().result(PATIENCE_S)]

    async def main() -> list[str | None]:
        return await warmed(open_service(pocket, driver))

    try:
        tiers = asyncio.run(main())
        assert tiers
        assert set(tiers) == {"memory"}
        path.write_text('{"prompt": "x"}\n{"prompt": }\n')
        with pytest.raises(WarmingError, match="line 2: We could not parse"):
            asyncio.run(main())
        path.write_text('{"messages": [{"role": "robot", "content": ""}]}')
        with pytest.raises(WarmingError, match="line 1: Invalid value: 'robot'"):
            asyncio.run(main())
        with pytest.raises(WarmingError, match="cannot be read"):
            read_warm_file(tmp_path / "missing", None, whose=lambda key: b"")  # type: ignore[arg-type]
    finally:
        driver.close()
