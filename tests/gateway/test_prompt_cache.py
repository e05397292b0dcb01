"""Prompt caching as clients see it: a real server, the real runtime, the bundled model."""

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

from ortserve.gateway import cli
from tests.gateway.pocket import ADMIN, CONVERSATION, RULES, cached, chat, serving_pocket, settle, text_of, written
from tests.gateway.test_metrics import scrape, value


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
    with httpx.Client(base_url=url) as http:
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
        async with httpx.AsyncClient(base_url=url) as client:
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


def test_prefixes_survive_a_restart_and_damage(pocket: Path, tmp_path: Path) -> None:
    """The second server reads what the first has written; a third finds damaged files and computes again."""
    words = ("path", str(tmp_path / "prefixes"))

    def ask() -> tuple[dict[str, Any], float]:
        with (
            serving_pocket(pocket, prompt_cache_options=(words,)) as url,
            httpx.Client(base_url=url) as http,
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


def test_the_blocks_on_disk_move_to_another_folder_in_one_file(
    pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, archive = tmp_path / "first", tmp_path / "second", tmp_path / "prefixes.tar"
    with (
        serving_pocket(pocket, prompt_cache_options=(("path", str(first)),)) as url,
        httpx.Client(base_url=url) as http,
    ):
        chat(http)
    assert cli.main(["cache", "export", str(first), str(archive), "--json"]) == 0
    num_blocks = json.loads(capsys.readouterr().out)["num_blocks"]
    assert num_blocks > 0
    assert cli.main(["cache", "import", str(archive), str(second)]) == 0
    assert capsys.readouterr().out == f"{num_blocks} blocks to {second}, 0 files ignored\n"
    with (
        serving_pocket(pocket, prompt_cache_options=(("path", str(second)),)) as url,
        httpx.Client(base_url=url) as http,
    ):
        assert cached(chat(http)) > 0
    assert cli.main(["cache", "import", str(tmp_path / "nothing.tar"), str(second)]) == 2
    assert "does not exist" in capsys.readouterr().err
