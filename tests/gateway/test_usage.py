"""Token counts on every endpoint: filled, adding up, the same streamed and whole, and those of the engine itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.pocket import ADMIN, serving_pocket, settle
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, make_tokenizer, saying
from tests.gateway.test_metrics import Samples, scrape, value
from tests.gateway.test_reasoning import REPLY, TEMPLATE

TEXT = "the quick brown fox jumps over the lazy dog while the old clock counts the hours of the night"
MESSAGES = [{"role": "user", "content": f"Repeat after me: {TEXT}"}]
NUM_OUTPUT = 24
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": NUM_OUTPUT}),
    "completions": ("/v1/completions", {"prompt": TEXT, "max_tokens": NUM_OUTPUT}),
    "responses": ("/v1/responses", {"input": MESSAGES, "max_output_tokens": NUM_OUTPUT}),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": NUM_OUTPUT}),
}


@dataclass(frozen=True)
class Counts:
    """One API's usage in one form; None where the API has no place for a number."""

    prompt: int
    cached: int
    written: int
    output: int
    total: int | None
    reasoning: int | None
    accepted: int | None
    rejected: int | None


def counts_of(usage: dict[str, Any]) -> Counts:
    if "prompt_tokens" in usage:
        given, made = usage["prompt_tokens_details"], usage["completion_tokens_details"]
        return Counts(
            usage["prompt_tokens"], given["cached_tokens"], given["cache_write_tokens"], usage["completion_tokens"],
            usage["total_tokens"], made["reasoning_tokens"], made["accepted_prediction_tokens"],
            made["rejected_prediction_tokens"],
        )  # fmt: skip
    if "cache_read_input_tokens" in usage:
        read, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
        return Counts(
            usage["input_tokens"] + read + written, read, written, usage["output_tokens"], None, None, None, None
        )
    given = usage["input_tokens_details"]
    return Counts(
        usage["input_tokens"], given["cached_tokens"], given["cache_write_tokens"], usage["output_tokens"],
        usage["total_tokens"], usage["output_tokens_details"]["reasoning_tokens"], None, None,
    )  # fmt: skip


def ask(http: httpx.Client, name: str, *, model: str = "pocket", stream: bool = False, **fields: Any) -> Counts:
    path, body = CALLS[name]
    body = {"model": model, "temperature": 0, "ignore_eos": True, **body, **fields, "stream": stream}
    if stream and name in ("chat", "completions"):
        body["stream_options"] = {"include_usage": True}
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return counts_of(streamed_usage(response.text) if stream else response.json()["usage"])


def streamed_usage(text: str) -> dict[str, Any]:
    """The last counts of a stream; of messages, those of its first event come before."""
    usage: dict[str, Any] = {}
    for line in text.split("\n"):
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            for holder in (event, event.get("response"), event.get("message")):
                usage.update((holder or {}).get("usage") or {})
    return usage


@pytest.fixture(scope="module")
def http(pocket: Path) -> Iterator[httpx.Client]:
    with serving_pocket(pocket) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module", params=["ngram", "combined"])
def drafted(pocket: Path, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    with (
        serving_pocket(pocket, drafter=request.param) as url,
        httpx.Client(base_url=url) as client,
    ):
        yield client


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_counts_add_up(http: httpx.Client, name: str, *, stream: bool) -> None:
    counts = ask(http, name, stream=stream)
    assert counts.output == NUM_OUTPUT
    assert counts.total in (None, counts.prompt + counts.output)
    assert 0 <= counts.cached + counts.written <= counts.prompt
    assert (counts.reasoning or 0) == 0
    assert (counts.accepted or 0) == (counts.rejected or 0) == 0, "nobody guesses here"
    if name in ("chat", "completions"):
        settle(http)
        twice = ask(http, name, stream=stream, n=2)
        assert (twice.prompt, twice.output) == (counts.prompt, 2 * counts.output), "the prompt counts once"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_cached_tokens_are_those_of_the_engine(http: httpx.Client, name: str, *, stream: bool) -> None:
    """What the engine was fed: the prompt but for what was cached, and the output but for its last token."""
    assert http.post("/admin/cache/clear", headers=ADMIN).status_code == 200
    found = []
    for _ in range(2):
        settle(http)
        before = value(scrape(http), "computed_tokens_total")
        counts = ask(http, name, stream=stream)
        settle(http)
        fed = value(scrape(http), "computed_tokens_total") - before
        assert counts.prompt - counts.cached == fed - (counts.output - 1)
        found.append(counts)
    cold, warm = found
    assert (cold.cached, cold.prompt) == (0, warm.prompt)
    assert cold.written > 0
    assert warm.cached == warm.prompt - 1


@pytest.mark.parametrize("name", sorted(CALLS))
def test_predictions_are_counted_where_there_is_a_place_for_them(drafted: httpx.Client, name: str) -> None:
    """As many as the drafter's own counters, on the endpoints that have a field for it; never part of other counts."""
    before = guesses(scrape(drafted))
    found = [ask(drafted, name, stream=stream) for stream in (False, True) for _ in range(4)]
    settle(drafted)
    proposed, accepted = (after - then for after, then in zip(guesses(scrape(drafted)), before, strict=True))
    assert {counts.output for counts in found} == {NUM_OUTPUT}
    if name in ("responses", "messages"):
        assert {counts.accepted for counts in found} == {None}
        return
    assert proposed > 0, "nothing was guessed"
    assert sum(counts.accepted or 0 for counts in found) == accepted
    assert sum(counts.rejected or 0 for counts in found) == proposed - accepted
    assert all(0 <= (counts.accepted or 0) < counts.output for counts in found)


def guesses(samples: Samples) -> tuple[float, float]:
    """Verified guesses, and those that held."""

    def total(name: str) -> float:
        return sum(count for (found, _), count in samples.items() if found == f"ortserve_draft_{name}_tokens_total")

    return total("proposed"), total("accepted")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["chat", "responses"])
def test_thoughts_are_counted_and_part_of_the_output(name: str, *, stream: bool) -> None:
    expected = len(make_tokenizer().encode("so it is\n</think>", add_special_tokens=False))
    with (
        running(make_driver(saying(REPLY)), template=TEMPLATE) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        fields = {"max_tokens": 200} if name == "chat" else {"max_output_tokens": 200}
        counts = ask(client, name, model="scripted", stream=stream, **fields)
    assert counts.reasoning == expected
    assert counts.reasoning < counts.output
    assert counts.total == counts.prompt + counts.output
