"""Responses that run in the background: kept, followed, cancelled, bounded, and counted once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from ortserve.gateway.responses import runs
from ortserve.gateway.store.state import State, StateOptions
from ortserve.runtime.request import FinishReason
from tests.gateway.conftest import REPLY
from tests.gateway.running import Running, running
from tests.gateway.scripted import Held, make_driver, saying
from tests.gateway.test_kept_responses import num_prompt_tokens, said
from tests.gateway.test_metrics import scrape, value
from tests.gateway.test_responses import PATH, call, events_of, refused
from tests.waiting import wait_for


@pytest.fixture
def slow() -> Iterator[Running]:
    """A server that says twenty tokens and then nothing more."""
    with running(make_driver(Held("ab" * 100, 20))) as server:
        yield server


def wait_for_status(http: httpx.Client, id: str, *statuses: str) -> dict[str, Any]:
    reply: dict[str, Any] = {}

    def is_there() -> bool:
        reply.update(http.get(f"{PATH}/{id}").json())
        return reply["status"] in statuses

    wait_for(is_there, lambda: f"still {reply['status']}")
    return reply


def test_the_background_by_the_sdk(client: OpenAI, http: httpx.Client, server: Running) -> None:
    reply = client.responses.create(model="scripted", input="hi", background=True)
    assert reply.status == "queued"
    assert reply.background
    assert reply.output == []
    wait_for(lambda: client.responses.retrieve(reply.id).status not in ("queued", "in_progress"))
    reply = client.responses.retrieve(reply.id)
    assert reply.status == "completed"
    assert reply.output_text == REPLY
    assert client.responses.cancel(reply.id).status == "completed"  # it had ended
    following = client.responses.create(model="scripted", input="hi", previous_response_id=reply.id)
    assert following.usage is not None
    turns = [said("hi"), {"role": "assistant", "content": REPLY}, said("hi")]
    assert following.usage.input_tokens == num_prompt_tokens(http, turns)
    assert server.driver.cancelled == []


def test_a_background_stream_can_be_left_and_taken_up_again(slow: Running) -> None:
    url = f"{slow.url}/v1"
    with OpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        seen = []
        with client.responses.create(model="scripted", input="hi", background=True, stream=True) as stream:
            for event in stream:
                seen.append(event)
                if len(seen) == 8:
                    break
        first = seen[0]
        assert first.type == "response.created"
        id = first.response.id
        with client.responses.retrieve(id, stream=True, starting_after=3) as stream:
            again = [event for event, _ in zip(stream, range(6), strict=False)]
        assert [event.sequence_number for event in again] == list(range(4, 10))
        assert again[:4] == seen[4:8]
        assert slow.driver.cancelled == []  # readers come and go
        cancelled = client.responses.cancel(id)
        assert cancelled.status == "cancelled"
        assert cancelled.output_text
        assert len(slow.driver.cancelled) == 1
        assert client.responses.cancel(id).status == "cancelled"
        assert client.responses.retrieve(id) == cancelled
        with client.responses.retrieve(id, stream=True) as stream:
            whole = list(stream)
    assert [event.type for event in whole][:5] == [
        "response.created", "response.queued", "response.in_progress", "response.output_item.added",
        "response.content_part.added",
    ]  # fmt: skip
    assert whole[:8] == seen
    last = whole[-1]
    assert last.type == "response.incomplete"
    assert last.response == cancelled
    assert [event.sequence_number for event in whole] == list(range(len(whole)))


def test_a_stored_stream_is_the_live_one(http: httpx.Client) -> None:
    live = http.post(PATH, json=call(background=True, stream=True))
    id = events_of(live)[0]["response"]["id"]
    again = http.get(f"{PATH}/{id}?stream=true")
    assert again.text == live.text
    assert events_of(again)[-1]["type"] == "response.completed"
    rest = http.get(f"{PATH}/{id}?stream=true&starting_after=4").text
    assert live.text.endswith(rest)
    assert rest.startswith("event: response.output_text.delta\n")
    assert '"sequence_number":5,' in rest.split("\n\n", maxsplit=1)[0]


def test_deleting_a_running_one_ends_it(slow: Running) -> None:
    with httpx.Client(base_url=slow.url) as http:
        id = http.post(PATH, json=call(background=True)).json()["id"]
        assert wait_for_status(http, id, "in_progress")["output"] == []
        assert http.delete(f"{PATH}/{id}").json() == {"id": id, "object": "response", "deleted": True}
        assert refused(http.get(f"{PATH}/{id}"), 404)
        assert len(slow.driver.cancelled) == 1


def test_nothing_goes_on_from_one_that_still_runs(slow: Running) -> None:
    """Its reply would be missing from what the model reads."""
    with httpx.Client(base_url=slow.url) as http:
        id = http.post(PATH, json=call(background=True)).json()["id"]
        error = refused(http.post(PATH, json=call(previous_response_id=id)))
        assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_running")
        assert http.post(f"{PATH}/{id}/cancel").json()["status"] == "cancelled"
        following = http.post(PATH, json=call(previous_response_id=id, background=True))
        assert following.json()["previous_response_id"] == id


def test_a_failure_in_the_background_is_kept() -> None:
    driver = make_driver(saying("hello"), ending=FinishReason.ERROR)
    with running(driver) as server, httpx.Client(base_url=server.url) as http:
        id = http.post(PATH, json=call(background=True)).json()["id"]
        reply = wait_for_status(http, id, "failed")
        assert reply["error"]["code"] == "server_error"
        assert http.get(f"{PATH}/{id}").json() == reply


def test_a_restart_fails_what_was_running_and_keeps_the_rest(tmp_path: Path) -> None:
    driver = make_driver(Held("ab" * 200, 20))
    with (
        running(driver, state=State(StateOptions(tmp_path))) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        done = http.post(PATH, json=call(max_output_tokens=2)).json()
        running_id = http.post(PATH, json=call(background=True)).json()["id"]
        wait_for_status(http, running_id, "in_progress")
    # Stopped in order: the engine's end is the response's.
    with (
        running(make_driver(saying(REPLY)), state=State(StateOptions(tmp_path))) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        reply = http.get(f"{PATH}/{running_id}").json()
        assert reply["status"] == "failed"
        assert reply["error"]["code"] == "server_error"
        assert http.get(f"{PATH}/{done['id']}").json() == done
        assert http.post(PATH, json=call(previous_response_id=done["id"])).status_code == 200


def test_the_background_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    original = runs.Runs.__init__
    monkeypatch.setattr(runs.Runs, "__init__", lambda self, count: original(self, count, max_runs=2))
    with running(make_driver(Held("ab" * 100, 20))) as server, httpx.Client(base_url=server.url) as http:
        for _ in range(2):
            assert http.post(PATH, json=call(background=True)).json()["status"] == "queued"
        response = http.post(PATH, json=call(background=True))
        assert refused(response, 429)["code"] == "rate_limit_exceeded"
        assert "retry-after" in response.headers
        assert http.post(PATH, json=call(max_output_tokens=1)).status_code == 200


def test_a_stream_that_is_left_is_not_kept(slow: Running) -> None:
    with httpx.Client(base_url=slow.url) as http:
        with http.stream("POST", PATH, json=call(stream=True)) as response:
            line = next(line for line in response.iter_lines() if line.startswith("data: "))
        wait_for(lambda: slow.driver.cancelled)
        assert len(slow.driver.cancelled) == 1
        id = line.split('"id":"')[1].split('"')[0]
        assert id.startswith("resp_")
        assert refused(http.get(f"{PATH}/{id}"), 404)


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
def test_tokens_of_the_background_are_counted_once(fields: dict[str, Any]) -> None:
    with running(make_driver(saying("hello"))) as server, httpx.Client(base_url=server.url) as http:
        response = http.post(PATH, json=call(background=True, **fields))
        id = response.json()["id"] if not fields else events_of(response)[0]["response"]["id"]
        usage = wait_for_status(http, id, "completed")["usage"]
        wait_for(lambda: value(scrape(http), "output_tokens_total") > 0)
        samples = scrape(http)
        assert value(samples, "output_tokens_total") == usage["output_tokens"]
        assert value(samples, "prompt_tokens_total") == usage["input_tokens"]
        assert value(samples, "request_seconds_count", route=PATH) == 1
        assert value(samples, "requests_total", route=PATH, status="200", outcome="done") == 1


def test_tokens_of_a_cancelled_response_are_counted(slow: Running) -> None:
    with httpx.Client(base_url=slow.url) as http:
        with http.stream("POST", PATH, json=call(background=True, stream=True)) as response:
            lines = response.iter_lines()
            id = next(line for line in lines if '"id":"' in line).split('"id":"')[1].split('"')[0]
            assert next(line for line in lines if line == "event: response.output_text.delta")
        http.post(f"{PATH}/{id}/cancel")
        assert 0 < value(scrape(http), "output_tokens_total") <= 20
