"""Limits of keys: how fast buckets fill, what is charged when, and what clients are told."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.bucket import Bucket
from ortserve.gateway.access.grant import Limits
from ortserve.gateway.access.quota import Quota
from ortserve.gateway.errors import ApiError
from ortserve.gateway.rate_limit import RateLimit, duration, rate_headers
from tests.gateway.access.test_access import CHAT, MESSAGE, bearer
from tests.gateway.access.test_key_file import file_of, line
from tests.gateway.running import running
from tests.gateway.scripted import Held, make_driver, saying
from tests.waiting import PATIENCE_S, wait_for


@given(st.integers(1, 1000), st.lists(st.floats(0, 120), max_size=50))
def test_no_minute_takes_more_than_twice_its_share(per_minute: int, gaps: list[float]) -> None:
    """A full bucket and what flows in during that minute; over any time the rate holds."""
    now, bucket, taken = 0.0, Bucket(per_minute, 0.0), 0
    for gap in gaps:
        now += gap
        while bucket.level(now) >= 1:
            bucket.take(1, now)
            taken += 1
    assert taken <= per_minute + now * per_minute / 60 + 1e-6


@given(st.integers(1, 1000), st.integers(1, 3000))
def test_after_the_wait_there_is_what_was_waited_for(per_minute: int, used: int) -> None:
    bucket = Bucket(per_minute, 0.0)
    bucket.take(used, 0.0)
    wait = bucket.wait_s(1, 0.0)
    assert bucket.level(wait + 1e-6) >= min(1, per_minute) - 1e-6
    assert wait == 0 or bucket.level(0.0) < 1


def told(quota: Quota) -> dict[str, str]:
    return rate_headers(quota.limits(0.0), is_anthropic=False)


def test_what_was_estimated_is_settled_once() -> None:
    quota = Quota(Limits(tokens_per_minute=100), 0.0)
    visit = quota.admit(200, 0.0)
    assert told(quota)["x-ratelimit-remaining-tokens"] == "49"
    visit.end(130, 0.0)
    visit.end(130, 0.0)
    assert quota.num_running == 0
    with pytest.raises(ApiError) as refused:
        quota.admit(0, 0.0)
    assert refused.value.problem.headers["retry-after-ms"] == "18600"  # 31 tokens at 100 a minute
    quota.admit(0, 18.7)


def test_other_limits_keep_what_was_used() -> None:
    quota = Quota(Limits(requests_per_minute=10), 0.0)
    for _ in range(8):
        quota.admit(0, 0.0)
    quota.change(Limits(requests_per_minute=9, concurrency=100), 0.0)
    assert told(quota)["x-ratelimit-remaining-requests"] == "1"
    quota.change(Limits(concurrency=8), 0.0)
    assert told(quota) == {}
    with pytest.raises(ApiError, match="concurrent requests: limit 8"):
        quota.admit(0, 0.0)


def test_durations() -> None:
    assert [duration(one) for one in (0, 0.0174, 1.5, 60, 361.25)] == ["0ms", "17ms", "1.5s", "1m0s", "6m1.25s"]


def test_anthropics_words_for_the_same() -> None:
    limit = RateLimit("tokens", 100, 40, 35.2)
    assert limit.anthropic_headers(datetime(2026, 5, 1, 23, 59, 30, tzinfo=UTC)) == {
        "anthropic-ratelimit-tokens-limit": "100",
        "anthropic-ratelimit-tokens-remaining": "40",
        "anthropic-ratelimit-tokens-reset": "2026-05-02T00:00:06Z",
    }


def test_limits_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()  # and no later: a second is worth a token
    monkeypatch.setattr("ortserve.gateway.http.edge.time", SimpleNamespace(monotonic=lambda: now))
    access = Access(file=file_of(tmp_path, line("few", requests_per_minute=2), line("little", tokens_per_minute=60)))
    with (
        running(make_driver(saying("hello world")), access=access) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        replies = [http.post("/v1/chat/completions", json=CHAT, headers=bearer("few")) for _ in range(3)]
        assert [one.status_code for one in replies] == [200, 200, 429]
        assert [one.headers["x-ratelimit-remaining-requests"] for one in replies] == ["1", "0", "0"]
        refused = replies[2]
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 31
        assert "x-ratelimit-reset-requests" in refused.headers
        again = http.post("/v1/messages", json=MESSAGE, headers=bearer("few"))
        assert again.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert again.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        assert not [name for name in again.headers if name.startswith("x-ratelimit")]
        assert again.json()["error"]["type"] == "rate_limit_error"
        assert http.get("/v1/models", headers=bearer("few")).status_code == 200  # costs nothing
        used = 0
        while used < 60:
            reply = http.post("/v1/chat/completions", json=CHAT, headers=bearer("little"))
            assert reply.status_code == 200
            used += reply.json()["usage"]["total_tokens"]
        refused = http.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=bearer("little"))
        assert refused.status_code == 429
        assert "tokens per minute: limit 60" in refused.json()["error"]["message"]


def test_as_many_at_once_as_allowed_streams_and_background_runs_included(tmp_path: Path) -> None:
    access = Access(file=file_of(tmp_path, line("two", concurrency=1), line("other")))
    body = {"model": "scripted", "input": "x", "background": True}
    script = Held("hello", 1)
    with (
        running(make_driver(script), access=access) as server,
        httpx.Client(base_url=server.url) as http,
    ):

        def status(key: str) -> int:
            return http.post("/v1/chat/completions", json=CHAT, headers=bearer(key)).status_code

        with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}, headers=bearer("two")) as one:
            lines = one.iter_lines()  # kept: dropping it would end the stream
            next(lines)
            assert status("two") == 429
            others = ThreadPoolExecutor(1).submit(status, "other")
            wait_for(lambda: len(server.driver.submitted) == 2)
            assert status("two") == 429
        wait_for(lambda: server.driver.cancelled)
        script.release()
        assert others.result(PATIENCE_S) == 200
        wait_for(lambda: status("two") == 200)  # the stream that was left has ended
        script.num_allowed = 1
        assert http.post("/v1/responses", json=body, headers=bearer("two")).status_code == 200
        assert status("two") == 429  # its answer has been sent, and it runs on
        script.release()
        wait_for(lambda: status("two") == 200)
