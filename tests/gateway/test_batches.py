"""/v1/batches: many requests from a file through the ordinary routes, cancelled, expired, gone on with, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from ortserve.gateway.routes import batches
from ortserve.gateway.store.state import State, StateOptions
from ortserve.runtime.drivers.engine_driver import Outlet
from ortserve.runtime.errors import OverloadedError
from ortserve.runtime.request import Request
from tests.gateway.conftest import REPLY
from tests.gateway.running import Running, running
from tests.gateway.scripted import answering_first, make_driver, saying
from tests.gateway.test_metrics import scrape, value
from tests.gateway.test_responses import refused
from tests.waiting import wait_for

PATH = "/v1/batches"
CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")


def line(id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    filled = {"model": "scripted", "messages": [{"role": "user", "content": id}], **body}
    return {"custom_id": id, "method": "POST", "url": url, "body": filled}


def upload(http: httpx.Client, lines: Sequence[Any], purpose: str = "batch") -> str:
    data = b"\n".join(entry if isinstance(entry, bytes) else json.dumps(entry).encode() for entry in lines)
    reply = http.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": purpose}).json()
    return str(reply["id"])


def begin(http: httpx.Client, lines: Sequence[Any], endpoint: str = CHAT, **fields: Any) -> dict[str, Any]:
    body = {"input_file_id": upload(http, lines), "endpoint": endpoint, "completion_window": "24h", **fields}
    response = http.post(PATH, json=body)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    assert reply["status"] == "validating"
    return reply


def wait_for_status(http: httpx.Client, id: str, *statuses: str) -> dict[str, Any]:
    reply: dict[str, Any] = {}

    def is_there() -> bool:
        reply.update(http.get(f"{PATH}/{id}").json())
        assert reply["status"] in statuses or reply["status"] not in OVER, reply
        return reply["status"] in statuses

    wait_for(is_there, lambda: reply)
    return reply


def results(http: httpx.Client, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    text = http.get(f"/v1/files/{file_id}/content").text
    rows = [json.loads(row) for row in text.splitlines()]
    assert len({row["id"] for row in rows}) == len({row["custom_id"] for row in rows}) == len(rows)
    return {row["custom_id"]: row for row in rows}


@pytest.fixture
def slow() -> Iterator[tuple[Running, httpx.Client]]:
    """A server that answers four requests and no more."""
    with (
        running(make_driver(answering_first(4, "abab"))) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        yield server, http


def test_by_the_sdk(server: Running) -> None:
    url = f"{server.url}/v1"
    with (
        OpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client,
        httpx.Client(base_url=server.url, headers={"authorization": "Bearer any"}) as http,
    ):
        lines = [line(f"q{number}") for number in range(10)]
        data = b"\n\n".join(json.dumps(entry).encode() for entry in lines)
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"},
            output_expires_after={"anchor": "created_at", "seconds": 3600},
        )  # fmt: skip
        wait_for_status(http, batch.id, "completed")
        batch = client.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 10, "completed": 10, "failed": 0}
        assert batch.metadata == {"a": "b"}
        assert batch.error_file_id is None
        assert batch.output_file_id is not None
        output = client.files.retrieve(batch.output_file_id)
        assert output.purpose == "batch_output"
        assert output.expires_at == output.created_at + 3600
        assert client.batches.list(limit=1).data == [batch]
        assert batch.model == "scripted"
        assert batch.usage is not None
        usages = [row["response"]["body"]["usage"] for row in results(http, batch.output_file_id).values()]
        assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages) > 0
        assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages) > 0
        assert batch.usage.total_tokens == sum(usage["total_tokens"] for usage in usages)
        found = results(http, batch.output_file_id)
        samples = scrape(http)
    assert set(found) == {f"q{number}" for number in range(10)}
    for row in found.values():
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        assert row["response"]["request_id"].startswith("req_")
        assert row["response"]["body"]["choices"][0]["message"]["content"] == REPLY
    assert {request.priority for request in server.driver.submitted[-10:]} == {-10}
    assert value(samples, "requests_total", route=CHAT, status="200", outcome="done") >= 10


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [("/v1/completions", {"prompt": "x"}), ("/v1/responses", {"input": "x"}), (CHAT, {})],
)
def test_every_endpoint_answers_as_it_does_itself(http: httpx.Client, endpoint: str, body: dict[str, Any]) -> None:
    entry = line("a", endpoint, **body)
    direct = http.post(endpoint, json=entry["body"]).json()
    reply = wait_for_status(http, begin(http, [entry], endpoint)["id"], "completed")
    answered = results(http, reply["output_file_id"])["a"]["response"]["body"]
    assert set(answered) == set(direct)
    assert answered["usage"] == direct["usage"]
    assert reply["usage"]["total_tokens"] == direct["usage"]["total_tokens"]
    assert reply["model"] == direct["model"]


def test_one_bad_request_spoils_no_other(http: httpx.Client) -> None:
    lines = [
        line("good"), line("hot", temperature=9), line("nobody", model="nobody"), line("endless", stream=True),
        line("long", messages=[{"role": "user", "content": "x" * 2000}]),
    ]  # fmt: skip
    reply = wait_for_status(http, begin(http, lines)["id"], "completed")
    assert reply["request_counts"] == {"total": 5, "completed": 1, "failed": 4}
    assert set(results(http, reply["output_file_id"])) == {"good"}
    errors = results(http, reply["error_file_id"])
    assert {id: row["response"]["status_code"] for id, row in errors.items()} == {
        "hot": 400, "nobody": 404, "endless": 400, "long": 400,
    }  # fmt: skip
    assert errors["hot"]["response"]["body"]["error"]["param"] == "temperature"
    assert errors["endless"]["response"]["body"]["error"]["param"] == "stream"


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([], "empty_file", None),
        ([line("a"), b"{", line("b")], "invalid_json_line", 2),
        ([b"\xff\xfe"], "invalid_json_line", 1),
        ([{**line("a"), "method": "GET"}], "invalid_json_line", 1),
        ([line("a"), b"", line("a")], "duplicate_custom_id", 3),
        ([line("a", "/v1/completions")], "mismatched_url", 1),
        ([{**line("a"), "body": [1]}], "invalid_request", 1),
        ([line("x" * 600)], "invalid_custom_id", 1),
        ([b"[" * 100_000], "invalid_json_line", 1),
    ],
)
def test_a_wrong_file_fails_by_line(
    server: Running, http: httpx.Client, lines: list[Any], code: str, number: int | None
) -> None:
    num_submitted = len(server.driver.submitted)
    reply = wait_for_status(http, begin(http, lines)["id"], "failed")
    (problem,) = reply["errors"]["data"]
    assert (problem["code"], problem["line"]) == (code, number)
    assert reply["output_file_id"] is None
    assert len(server.driver.submitted) == num_submitted


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"input_file_id": "file_nobody"}, 404, "input_file_id"),
        ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "output_expires_after.seconds"),
    ],
)
def test_refusals_name_the_field(http: httpx.Client, fields: dict[str, Any], status: int, param: str) -> None:
    body = {"input_file_id": "x", "endpoint": CHAT, "completion_window": "24h", **fields}
    assert refused(http.post(PATH, json=body), status)["param"] == param
    wrong = {"input_file_id": upload(http, [line("a")], "user_data"), "endpoint": CHAT, "completion_window": "24h"}
    assert refused(http.post(PATH, json=wrong))["param"] == "input_file_id"


def test_cancelling_keeps_what_there_is(slow: tuple[Running, httpx.Client]) -> None:
    server, http = slow
    id = begin(http, [line(f"q{number}") for number in range(50)])["id"]
    wait_for(lambda: http.get(f"{PATH}/{id}").json()["request_counts"]["completed"] == 4)
    wait_for(lambda: len(server.driver.submitted) == 4 + 4)  # at once
    assert http.post(f"{PATH}/{id}/cancel").json()["status"] == "cancelling"
    reply = wait_for_status(http, id, "cancelled")
    counts = reply["request_counts"]
    assert len(results(http, reply["output_file_id"])) == counts["completed"] == 4
    assert counts["failed"] == 0
    assert reply["cancelled_at"] >= reply["cancelling_at"]
    assert "Cannot cancel" in refused(http.post(f"{PATH}/{id}/cancel"))["message"]
    later = begin(http, [line("after")])["id"]
    wait_for(lambda: len(server.driver.submitted) == 4 + 4 + 1)  # and none of the cancelled ones before it
    assert http.post(f"{PATH}/{later}/cancel").status_code == 200
    wait_for_status(http, later, "cancelled")
    assert len(server.driver.submitted) == 4 + 4 + 1


def test_an_engine_without_room_is_waited_for(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_tries, submit = 0, server.driver.submit

    def counted(request: Request, outlet: Outlet) -> None:
        nonlocal num_tries
        num_tries += 1
        submit(request, outlet)

    monkeypatch.setattr(server.driver, "submit", counted)
    server.driver.refusal = OverloadedError("full", retry_after_s=0.1)
    try:
        id = begin(http, [line("a"), line("b")])["id"]
        wait_for_status(http, id, "in_progress")
        wait_for(lambda: num_tries >= 2 * 3)  # each of both again and again
        assert http.get(f"{PATH}/{id}").json()["request_counts"]["failed"] == 0
    finally:
        server.driver.refusal = None
    assert wait_for_status(http, id, "completed")["request_counts"]["completed"] == 2


def test_a_batch_out_of_time_says_what_was_not_run(
    slow: tuple[Running, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, http = slow
    for window_s in (2, 8, 32):  # in which a busy machine answers four
        server.driver.script = answering_first(4, "abab")
        monkeypatch.setattr(batches, "WINDOW_S", window_s)
        reply = wait_for_status(http, begin(http, [line(f"q{number}") for number in range(30)])["id"], "expired")
        done, rest = results(http, reply["output_file_id"]), results(http, reply["error_file_id"])
        if len(done) == 4:
            break
    assert len(done) == 4
    assert set(done) | set(rest) == {f"q{number}" for number in range(30)}
    assert set(done).isdisjoint(rest)
    assert {row["error"]["code"] for row in rest.values()} == {"batch_expired"}
    totals = [row["response"]["body"]["usage"]["total_tokens"] for row in done.values()]
    assert reply["usage"]["total_tokens"] == sum(totals)


def test_no_key_sees_another_s(server: Running) -> None:
    def client(key: str) -> httpx.Client:
        return httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"})

    with client("batch-alice") as alice, client("batch-bob") as bob:
        reply = wait_for_status(alice, begin(alice, [line("a")])["id"], "completed")
        assert refused(bob.get(f"{PATH}/{reply['id']}"), 404)
        assert refused(bob.post(f"{PATH}/{reply['id']}/cancel"), 404)
        assert bob.get(PATH).json()["data"] == []
        assert refused(bob.get(f"/v1/files/{reply['output_file_id']}/content"), 404)
        body = {"input_file_id": reply["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
        assert refused(bob.post(PATH, json=body), 404)["param"] == "input_file_id"


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    """No request is lost, and none that has a result is run again."""
    driver = make_driver(answering_first(5, "abab"))
    expiry: dict[str, Any] = {"output_expires_after": {"anchor": "created_at", "seconds": 7200}}
    with (
        running(driver, state=State(StateOptions(tmp_path))) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        id = begin(http, [line(f"q{number}") for number in range(30)], **expiry)["id"]
        wait_for(lambda: http.get(f"{PATH}/{id}").json()["request_counts"]["completed"] == 5)
    (partial,) = (tmp_path / "files").glob("*_output.part")
    done = [json.loads(row)["custom_id"] for row in partial.read_text().splitlines()]
    assert len(done) == 5
    with partial.open("ab") as file:
        file.write(b'{"id":"batch_req_torn","custom_id":"q29","respo')  # as a killed process leaves it
    second = make_driver(saying("again"))
    with running(second, state=State(StateOptions(tmp_path))) as server, httpx.Client(base_url=server.url) as http:
        reply = wait_for_status(http, id, "completed")
        assert reply["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
        found = results(http, reply["output_file_id"])
        assert set(found) == {f"q{number}" for number in range(30)}
        assert len(second.submitted) == 30 - len(done)
        output = http.get("/v1/files?purpose=batch_output").json()["data"][0]
        assert output["id"] == reply["output_file_id"]
        assert output["expires_at"] == output["created_at"] + 7200, "what the first server was told"
        totals = [row["response"]["body"]["usage"]["total_tokens"] for row in found.values()]
        assert reply["usage"]["total_tokens"] == sum(totals), "also of what the first server answered"
