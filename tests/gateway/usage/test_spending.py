"""Budgets of keys: kept over restarts, for a day or a month, and refused in words that clients understand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import anthropic
import httpx
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.grant import Budget, Grant, Limits, digest_of
from ortserve.gateway.access.key_file import KeyFileError, read_key_file
from ortserve.gateway.access.options import open_access
from ortserve.gateway.errors import ApiError
from ortserve.gateway.options.access import AccessSettings
from ortserve.gateway.options.usage import UsageSettings
from ortserve.gateway.usage.ledger import LOOK_BYTES, Ledger, read_since
from ortserve.gateway.usage.line import UsageLine
from ortserve.gateway.usage.options import accounted_units, open_ledger
from ortserve.gateway.usage.prices import Price
from ortserve.gateway.usage.spending import Spending, key_name, month_start
from tests.gateway.access.test_access import CHAT, MESSAGE, bearer
from tests.gateway.access.test_key_file import file_of, line
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying
from tests.waiting import wait_for

DIGEST = digest_of(b"one")
NOON = datetime(2026, 12, 30, 12, tzinfo=UTC).timestamp()
DAY_S = 86400.0


def used(tokens: int, when: float = NOON, *, cost: float | None = None) -> UsageLine:
    return UsageLine(when, "r", "one", key_name(DIGEST), "t", "m", tokens - 1, 0, 1, 0, 0.1, "done", cost)


def granted(*budgets: Budget) -> Grant:
    return Grant("one", DIGEST, b"t", limits=Limits(budgets=budgets))


class Calendar:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def test_a_budget_lasts_until_its_day_or_month_is_over() -> None:
    clock = Calendar()
    spending = Spending([used(60, NOON - DAY_S), used(39)], clock=clock)
    daily, monthly = granted(Budget("tokens", "day", 40)), granted(Budget("tokens", "month", 100))
    spending.check(daily)
    spending.check(monthly)
    spending.add(used(1))
    for grant, until in ((daily, "2026-12-31T00:00:00Z"), (monthly, "2027-01-01T00:00:00Z")):
        with pytest.raises(ApiError, match=f"is used up until {until}") as refused:
            spending.check(grant)
        problem = refused.value.problem
        assert (problem.status, problem.code, problem.type) == (429, "insufficient_quota", "insufficient_quota")
    clock.now += DAY_S
    spending.check(daily)
    with pytest.raises(ApiError):
        spending.check(monthly)
    clock.now += DAY_S
    spending.check(monthly)


def test_costs_are_summed_and_other_keys_are_not_charged() -> None:
    spending = Spending([used(5, cost=0.5), used(5), used(5, cost=0.25)], clock=Calendar())
    spending.check(granted(Budget("cost", "month", 0.76)))
    with pytest.raises(ApiError, match=r"budget of 0\.75 per day"):
        spending.check(granted(Budget("cost", "day", 0.75)))
    other = Grant("two", digest_of(b"two"), b"t", limits=Limits(budgets=(Budget("cost", "day", 0.1),)))
    spending.check(other)
    spending.check(Grant("one", DIGEST, b"t"))


@given(st.lists(st.floats(0, 30), max_size=30), st.integers(0, 3), st.floats(0, 400))
def test_what_was_written_since_is_found_without_reading_the_rest(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[float], num_torn: int, begin: float
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "usage.jsonl"
    filler = "x" * (LOOK_BYTES // 4)  # lines so long that a file of a few is searched
    times, lines, now = list[float](), list[bytes](), 0.0
    for gap in gaps:
        now += gap * 1000
        times.append(now)
        lines.append(msgspec.json.encode(msgspec.structs.replace(used(2, now), request_id=filler)))
        lines += [b'{"torn'] * num_torn
    path.write_bytes(b"\n".join(lines))
    assert [one.time for one in read_since(path, begin * 1000)] == [one for one in times if one >= begin * 1000]
    assert list(read_since(path.with_name("none"), 0.0)) == []


def test_over_http_and_over_a_restart(tmp_path: Path) -> None:
    ledger_file = tmp_path / "usage.jsonl"
    keys = file_of(tmp_path, line("one", tokens_per_day=20), line("two"))

    def server_of(ledger: Ledger) -> Access:
        assert ledger is not None
        return Access(file=keys, accounted=["tokens"])

    ledger = Ledger(ledger_file, {})
    with (
        running(make_driver(saying("hello")), access=server_of(ledger), ledger=ledger) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        spent = 0
        while spent < 20:
            reply = http.post("/v1/chat/completions", json=CHAT, headers=bearer("one"))
            assert reply.status_code == 200
            spent += reply.json()["usage"]["total_tokens"]
        refused = http.post("/v1/chat/completions", json=CHAT, headers=bearer("one"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        assert http.post("/v1/messages", json=MESSAGE, headers=bearer("one")).status_code == 429
        assert http.post("/v1/chat/completions", json=CHAT, headers=bearer("two")).status_code == 200
        assert http.get("/v1/models", headers=bearer("one")).status_code == 200
    ledger.close()
    again = open_ledger(UsageSettings(usage_ledger=ledger_file))
    assert again is not None
    driver = make_driver(saying("hello"))
    with running(driver, access=server_of(again), ledger=again) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="one", max_retries=2)
        with pytest.raises(openai.RateLimitError, match="exceeded your current quota"):
            client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(anthropic.RateLimitError):
            anthropic.Anthropic(base_url=server.url, api_key="one").messages.create(
                model="scripted", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
            )
        metrics = httpx.get(server.url + "/metrics", headers=bearer("two")).text
        assert (
            'ortserve_errors_total{code="insufficient_quota",route="/v1/chat/completions"} 1.0' in metrics
        )  # no retry
    again.close()
    assert driver.submitted == []


def test_batches_are_charged_to_their_tenants_key_and_end_when_it_is_used_up(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "usage.jsonl", {})
    access = Access(file=file_of(tmp_path, line("one", tokens_per_month=30)), accounted=["tokens"])
    rows = [
        msgspec.json.encode({"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions", "body": CHAT})
        for number in range(20)
    ]
    with (
        running(make_driver(saying("hello")), access=access, ledger=ledger) as server,
        httpx.Client(base_url=server.url, headers=bearer("one")) as http,
    ):
        file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": b"\n".join(rows)}).json()["id"]
        batch = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        id = http.post("/v1/batches", json=batch).json()["id"]
        wait_for(lambda: http.get(f"/v1/batches/{id}").json()["status"] == "completed")
        reply = http.get(f"/v1/batches/{id}").json()
        errors = http.get(f"/v1/files/{reply['error_file_id']}/content").text.splitlines()
        assert 0 < reply["request_counts"]["completed"] < 20
        assert len(errors) == 20 - reply["request_counts"]["completed"]
        assert all('"insufficient_quota"' in one for one in errors)
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 429
    ledger.close()


def test_budgets_that_nobody_keeps_are_refused(tmp_path: Path) -> None:
    ledger, prices = tmp_path / "usage.jsonl", tmp_path / "prices.json"
    prices.write_bytes(msgspec.json.encode({"m": Price(1.0)}))
    file = file_of(tmp_path, line("one", tokens_per_day=5, cost_per_month=1.5))
    (grant,) = read_key_file(file)
    assert grant.limits.budgets == (Budget("tokens", "day", 5), Budget("cost", "month", 1.5))
    settings = AccessSettings(api_keys=file)
    with pytest.raises(KeyFileError, match="key 'one': tokens_per_day needs --usage-ledger to be kept"):
        open_access(settings, accounted_units(UsageSettings()))
    with pytest.raises(KeyFileError, match="cost_per_month needs --usage-ledger and --prices to be kept"):
        open_access(settings, accounted_units(UsageSettings(usage_ledger=ledger)))
    open_access(settings, accounted_units(UsageSettings(usage_ledger=ledger, prices=prices)))
    with pytest.raises(KeyFileError, match="tokens_per_day"):
        read_key_file(file_of(tmp_path, line("one", tokens_per_day=0)))


def test_months_begin_on_their_first_day() -> None:
    assert datetime.fromtimestamp(month_start(NOON), UTC) == datetime(2026, 12, 1, tzinfo=UTC)
