"""Prompt caching as clients and operators see it: a real server, the real runtime, the bundled model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ortserve.gateway.server import Limits
from ortserve.gateway.service import ModelService, open_service
from ortserve.gateway.tenancy import tenant_of
from ortserve.gateway.warming import WarmingError, read_warm_file, warm_all
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.driver import Driver
from ortserve.runtime.opening import open_driver
from tests.gateway.running import serving
from tests.gateway.test_metrics import scrape, value

ADMIN = {"authorization": "Bearer boss"}
RULES = "Answer in one short sentence. Be polite, and say so when you do not know the answer. " * 2
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": RULES},
    {"role": "user", "content": "What is 23 + 58?"},
]


def open_pocket(folder: Path, **options: Any) -> Driver:
    return open_driver(folder, EngineConfig(max_rows=4, num_threads=1, kv_memory=2**26, **options))


@pytest.fixture(scope="module")
def driver(pocket: Path) -> Driver:
    return open_pocket(pocket, prompt_cache="prefix", prompt_cache_memory=2**26)


@pytest.fixture(scope="module")
def url(pocket: Path, driver: Driver) -> Iterator[str]:
    limits = Limits(drain_s=1.0)
    with serving(lambda: open_service(pocket, driver), driver.close, limits, admin_key="boss") as (port, _):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    """A client of an empty cache."""
    with httpx.Client(base_url=url, timeout=30) as client:
        assert client.post("/admin/cache/clear", headers=ADMIN).status_code == 200
        yield client


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


def test_the_second_of_two_equal_requests_computes_one_token(http: httpx.Client) -> None:
    first, second = chat(http), chat(http)
    num_tokens = first["usage"]["prompt_tokens"]
    assert (cached(first), written(first)) == (0, num_tokens)
    assert cached(second) == num_tokens - 1
    assert written(second) <= 1
    assert text_of(first) == text_of(second) == "23 + 58 = 81"


def test_a_streamed_reply_tells_the_same(http: httpx.Client) -> None:
    chat(http)
    body = {"model": "pocket", "messages": CONVERSATION, "temperature": 0, "max_tokens": 24, "stream": True}
    for fields in ({}, {"stop": "="}):
        streamed = http.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}, **fields})
        frames = [json.loads(line[6:]) for line in streamed.text.split("\n\n") if line.startswith("data: {")]
        details = frames[-1]["usage"]["prompt_tokens_details"]
        assert details["cached_tokens"] == frames[-1]["usage"]["prompt_tokens"] - 1


def test_several_choices_count_the_prompt_once(http: httpx.Client) -> None:
    cold = chat(http, n=2)
    num_tokens = cold["usage"]["prompt_tokens"]
    assert (cached(cold), written(cold)) == (0, num_tokens)
    warm = chat(http, n=2)
    assert cached(warm) == num_tokens - 1
    assert [choice["message"] for choice in warm["choices"]] == [choice["message"] for choice in cold["choices"]]


def test_a_reply_that_a_stop_string_has_cut_tells_true_numbers(http: httpx.Client) -> None:
    chat(http)
    reply = chat(http, stop="=")
    assert text_of(reply) == "23 + 58 "
    assert cached(reply) == reply["usage"]["prompt_tokens"] - 1


def test_completions_cache_too(http: httpx.Client) -> None:
    prompts = ["Once upon a time there was a small house in the woods. " * 2, "Another beginning, of another story."]
    body = {"model": "pocket", "prompt": prompts, "temperature": 0, "max_tokens": 4, "n": 2}
    usages = []
    for _ in range(2):
        usages.append(http.post("/v1/completions", json=body).json()["usage"])
        settle(http)
    first, second = (usage["prompt_tokens_details"] for usage in usages)
    assert (first["cached_tokens"], first["cache_write_tokens"]) == (0, usages[0]["prompt_tokens"])
    assert second["cached_tokens"] == usages[0]["prompt_tokens"] - 2  # the last token of each


def test_the_next_turn_reuses_what_was_generated(http: httpx.Client) -> None:
    reply = chat(http)
    turn = [*CONVERSATION, {"role": "assistant", "content": text_of(reply)}, {"role": "user", "content": "And 1 + 1?"}]
    followed = chat(http, messages=turn)
    assert cached(followed) > reply["usage"]["prompt_tokens"]
    assert text_of(followed) == text_of(chat(http, messages=turn, cache_salt="cold"))


CALLERS = st.tuples(st.sampled_from([None, "a", "b"]), st.sampled_from([None, "s", "t"]))


@given(callers=st.lists(CALLERS, min_size=2, max_size=5, unique=True))
@settings(max_examples=8)
def test_no_two_keys_or_salts_ever_share(url: str, callers: list[tuple[str | None, str | None]]) -> None:
    with httpx.Client(base_url=url, timeout=30) as http:
        assert http.post("/admin/cache/clear", headers=ADMIN).status_code == 200
        for key, salt in callers:
            assert cached(chat(http, key=key, cache_salt=salt, max_tokens=1)) == 0
        for key, salt in callers:
            assert cached(chat(http, key=key, cache_salt=salt, max_tokens=1)) > 0


def test_callers_at_the_same_time_do_not_share_either(url: str, http: httpx.Client) -> None:
    """Following another request's computation is sharing too."""

    async def ask(client: httpx.AsyncClient, key: str) -> int:
        body = {"model": "pocket", "messages": CONVERSATION, "temperature": 0, "max_tokens": 1}
        response = await client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
        return cached(response.json())

    async def ask_all() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            return await asyncio.gather(*(ask(client, key) for key in ("a", "b", "c", "d", "a")))

    counts = asyncio.run(ask_all())
    assert sum(count == 0 for count in counts) >= 4  # at most the second "a" has reused anything
    assert all(count == 0 for count in counts[1:4])


def test_a_foreign_prefix_costs_what_a_cold_one_does(http: httpx.Client) -> None:
    """To the step, token and block: nothing a caller can count tells whether others have asked the same."""
    names = ["steps", "computed_tokens", "prompt_cache_hit_tokens", "prompt_cache_published_blocks"]

    def cost(key: str) -> list[float]:
        before = scrape(http)
        chat(http, key=key)
        after = scrape(http)
        return [value(after, f"{name}_total") - value(before, f"{name}_total") for name in names]

    cold = cost("first")
    assert cost("second") == cost("third") == cold
    assert cost("second") != cold


def test_a_cache_key_does_not_divide_a_tenant(http: httpx.Client) -> None:
    chat(http, prompt_cache_key="one")
    assert cached(chat(http, prompt_cache_key="two")) > 0


def test_off_neither_reads_nor_writes(http: httpx.Client) -> None:
    off: dict[str, Any] = {"prompt_cache_options": {"mode": "off"}}
    assert (cached(chat(http, **off)), written(chat(http, **off))) == (0, 0)
    assert cached(chat(http)) == 0
    assert cached(chat(http, **off)) == 0
    assert cached(chat(http)) > 0


def test_explicit_keeps_what_lies_before_the_breakpoint(http: httpx.Client) -> None:
    marked = {"type": "text", "text": RULES, "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "1h"}}
    messages = [{"role": "system", "content": [marked]}, CONVERSATION[1]]
    explicit: dict[str, Any] = {"messages": messages, "prompt_cache_options": {"mode": "explicit"}}
    first = chat(http, **explicit)
    assert 0 < written(first) < first["usage"]["prompt_tokens"]
    second = chat(http, **explicit)
    assert cached(second) == written(first)
    assert text_of(first) == text_of(second)
    entries = http.get("/admin/cache/entries", headers=ADMIN).json()["data"]
    assert sum(entry["num_tokens"] for entry in entries) == written(first)
    assert all(3500 < entry["pinned_s"] <= 3600 for entry in entries)


def test_metrics_show_the_cache(http: httpx.Client) -> None:
    before = scrape(http)
    chat(http)
    hit = cached(chat(http))
    after = scrape(http)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("prompt_cache_hit_tokens_total") == grown("cached_prompt_tokens_total") == hit
    assert grown("prompt_cache_query_tokens_total") >= 2 * hit
    assert grown("prompt_cache_saved_seconds_total") > 0
    assert grown("prompt_cache_published_blocks_total") > 0
    assert value(after, "prompt_cache_blocks", tier="memory") > 0
    assert value(after, "prompt_cache_bytes", tier="memory") > 0


# Operators


def test_administration_needs_its_own_key(url: str, pocket: Path, driver: Driver) -> None:
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
        await warm_all(service, read_warm_file(path, service.vocabulary, tenant=tenant))
        service.pool.close()
        return [None if entry.pinned_s is None else entry.tier for entry in driver.cache_entries().result(10)]

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
            read_warm_file(tmp_path / "missing", None, tenant=b"")  # type: ignore[arg-type]
    finally:
        driver.close()


def test_prefixes_survive_a_restart_and_damage(pocket: Path, tmp_path: Path) -> None:
    """The second server reads what the first has written; a third finds damaged files and computes again."""
    words = ("path", str(tmp_path / "prefixes"))

    def ask() -> tuple[dict[str, Any], float]:
        driver = open_pocket(pocket, prompt_cache="prefix", prompt_cache_memory=2**26, prompt_cache_options=(words,))
        limits = Limits(drain_s=1.0)
        with (
            serving(lambda: open_service(pocket, driver), driver.close, limits, admin_key="boss") as (port, _),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
        ):
            reply = chat(http)
            return reply, value(scrape(http), "prompt_cache_ignored_files_total", tier="disk")

    first, _ = ask()
    second, num_ignored = ask()
    assert cached(first) == 0
    assert (cached(second) > 0, num_ignored) == (True, 0)
    files = [path for path in (tmp_path / "prefixes").rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    third, num_ignored = ask()
    assert cached(third) == 0
    assert num_ignored > 0
    assert text_of(first) == text_of(second) == text_of(third)
