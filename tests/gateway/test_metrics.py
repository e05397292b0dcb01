"""Metrics: valid in both formats, counted once per request, and without a label that strangers can fill."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ortserve.gateway.tally import TOKEN_SECONDS, Tally
from ortserve.gateway.telemetry.metrics import route_of
from tests.gateway.running import Running, running
from tests.gateway.scripted import Held, make_driver, saying
from tests.gateway.test_errors import CHAT, TEXT, chat, text

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(http: httpx.Client, **headers: str) -> Samples:
    response = http.get("/metrics", headers=headers)
    assert response.status_code == 200
    is_open = "openmetrics" in response.headers["content-type"]
    families = (parse_openmetrics if is_open else parse_text)(response.text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Of all models together, unless one is named."""
    wanted = [
        number
        for (found, pairs), number in samples.items()
        if found == f"ortserve_{name}" and pairs >= labels.items() and dict(pairs).keys() - labels.keys() <= {"model"}
    ]
    return sum(wanted)


@pytest.fixture
def fresh() -> Iterator[tuple[Running, httpx.Client]]:
    with running(make_driver(saying("hello world!"))) as server, httpx.Client(base_url=server.url) as http:
        yield server, http


def test_what_requests_leave_behind(fresh: tuple[Running, httpx.Client]) -> None:
    server, http = fresh
    usages = [
        http.post(CHAT, json=chat(n=2)).json()["usage"],
        http.post(TEXT, json=text(stop="wor")).json()["usage"],
    ]
    before = value(scrape(http), "inter_token_seconds_count")
    server.driver.script = script = Held("hello world!")
    with http.stream("POST", CHAT, json=chat(stream=True)) as response:
        for line in response.iter_lines():  # tokens that come at once have no time between them
            script.allow(line.startswith("data: "))
    assert http.post(CHAT, json=chat(n=0)).status_code == 400
    samples = scrape(http)
    assert value(samples, "requests_total", route=CHAT, status="200", outcome="done") == 2
    assert value(samples, "requests_total", route=CHAT, status="400", outcome="done") == 1
    assert value(samples, "requests_total", route=TEXT, status="200", outcome="done") == 1
    num_prompt = usages[0]["prompt_tokens"] * 2 + usages[1]["prompt_tokens"]
    assert value(samples, "prompt_tokens_total") == num_prompt
    streamed = usages[0]["completion_tokens"] / 2
    assert value(samples, "output_tokens_total") == sum(usage["completion_tokens"] for usage in usages) + streamed
    assert value(samples, "request_seconds_count", route=CHAT) == 2
    assert value(samples, "time_to_first_token_seconds_count") == 3
    assert value(samples, "queue_seconds_count") == 4  # sequences; the one that a stop string has cut too
    assert value(samples, "inter_token_seconds_count") - before == len(script.ids) - 1
    assert value(samples, "inter_token_seconds_bucket", le="+Inf") == value(samples, "inter_token_seconds_count")
    assert value(samples, "healthy") == 1
    assert value(samples, "kv_blocks", state="used") == 8


def test_both_formats_parse_and_agree(fresh: tuple[Running, httpx.Client]) -> None:
    _, http = fresh
    assert http.post(CHAT, json=chat()).status_code == 200
    plain = scrape(http)
    opened = scrape(http, accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert value(plain, "output_tokens_total") == value(opened, "output_tokens_total") > 0
    names = {name for name, _ in plain}
    assert names >= {"ortserve_prompt_cache_hit_tokens_total", "ortserve_prompt_cache_query_tokens_total"}
    assert all(name.startswith("ortserve_") for name in names)
    assert scrape(http, accept="text/plain;version=abc;escaping=odd")


def test_labels_are_of_bounded_variety(fresh: tuple[Running, httpx.Client]) -> None:
    _, http = fresh
    for place in range(20):
        http.get(f"/{place}")
        http.get(f"/v1/models/{place}")
    routes = {dict(labels)["route"] for name, labels in scrape(http) if name == "ortserve_requests_total"}
    assert routes == {"other", "/v1/models/{id}"}
    assert route_of("/v1/models") == "/v1/models"


def test_metrics_need_the_key_or_the_administrators() -> None:
    with (
        running(make_driver(saying("x")), api_key="user", admin_key="boss") as server,
        httpx.Client(base_url=server.url) as http,
    ):
        status = {
            key: http.get("/metrics", headers={"authorization": f"Bearer {key}"}).status_code
            for key in ("user", "boss", "other")
        }
    assert status == {"user": 200, "boss": 200, "other": 401}


@given(st.lists(st.tuples(st.floats(0, 4), st.integers(1, 5)), max_size=30))
def test_a_tally_counts_what_lies_at_or_below_each_bound(observations: list[tuple[float, int]]) -> None:
    whole, first, second = Tally(TOKEN_SECONDS), Tally(TOKEN_SECONDS), Tally(TOKEN_SECONDS)
    for place, (seconds, count) in enumerate(observations):
        whole.add(seconds, count)
        (first if place % 2 else second).add(seconds, count)
    first.merge(second)
    expected = [float(sum(count for seconds, count in observations if seconds <= bound)) for bound in TOKEN_SECONDS]
    assert [count for _, count in whole.buckets()][:-1] == expected
    assert first.buckets() == whole.buckets()
    assert whole.count == sum(count for _, count in observations)
    assert abs(first.total - whole.total) < 1e-9
