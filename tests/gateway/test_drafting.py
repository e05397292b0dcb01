"""Speculation over the wire: replies that do not change, counts that are true, fields that are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from ortserve.gateway.configuration.kinds import Pairs
from ortserve.gateway.errors import ApiError
from ortserve.gateway.options.drafter import find_draft_model
from ortserve.gateway.schema.drafting import DraftWish, read_draft_wish
from ortserve.gateway.schema.fields import Fields
from ortserve.runtime.errors import ConfigurationError, PluginUnusableError
from tests.gateway.pocket import open_pocket, serving_pocket
from tests.gateway.test_metrics import Samples, scrape, value
from tests.gateway.test_serve import settings_of


@pytest.mark.parametrize(
    ("body", "wish"),
    [
        ({}, DraftWish()),
        ({"prediction": None, "speculative": None}, DraftWish()),
        ({"prediction": {"type": "content", "content": "abc"}}, DraftWish("abc")),
        (
            {
                "prediction": {
                    "type": "content",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                }
            },
            DraftWish("ab"),
        ),
        ({"speculative": {"max_draft": 0}}, DraftWish(max_draft=0)),
    ],
)
def test_what_a_request_says(body: dict[str, Any], wish: DraftWish) -> None:
    assert read_draft_wish(Fields(body)) == wish


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prediction": "abc"}, "prediction"),
        ({"prediction": {"content": "abc"}}, "prediction.type"),
        ({"prediction": {"type": "tokens", "content": "abc"}}, "prediction.type"),
        ({"prediction": {"type": "content"}}, "prediction.content"),
        ({"prediction": {"type": "content", "content": 5}}, "prediction.content"),
        ({"prediction": {"type": "content", "content": [{"type": "image_url"}]}}, "prediction.content[0].type"),
        ({"speculative": {"max_draft": 99}}, "speculative.max_draft"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_draft_wish(Fields(body))
    assert caught.value.problem.status == 400
    assert caught.value.problem.param == param


TEXT = "the quick brown fox jumps over the lazy dog while the old clock counts the hours of the night"
REPEAT = [{"role": "user", "content": f"Repeat after me: {TEXT}"}]


@pytest.fixture(scope="module", params=["combined", "ngram", "model"])
def drafted(request: pytest.FixtureRequest, pocket: Path, pocket_draft: Path) -> Iterator[str]:
    options: dict[str, Any] = {"drafter": request.param, "draft_model": str(pocket_draft)}
    with serving_pocket(pocket, deterministic=True, **options) as url:
        yield url


@pytest.fixture(scope="module")
def plain(pocket: Path) -> Iterator[str]:
    with serving_pocket(pocket, deterministic=True) as url:
        yield url


def ask(url: str, **fields: Any) -> dict[str, Any]:
    with httpx.Client(base_url=url) as client:
        body = {"model": "pocket", "messages": REPEAT, "temperature": 0, "max_tokens": 60, **fields}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        reply: dict[str, Any] = response.json()
        return reply


def guesses(reply: dict[str, Any]) -> tuple[int, int]:
    details = reply["usage"]["completion_tokens_details"]
    return details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]


FIELDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 5},
    {"n": 2, "temperature": 1.0, "seed": 6},
    {"stop": ["old clock"]},
    {"stop": "ox", "temperature": 0.8, "seed": 1},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {"7": 5, "100": -100}},
    {"prediction": {"type": "content", "content": TEXT}},
    # So hot that a copy ends at once, and what follows a wrong guess shows that it was wrong.
    *({"prediction": {"type": "content", "content": TEXT}, "temperature": 2.0, "seed": seed} for seed in (7, 8, 9)),
]


@cache
def plain_reply(url: str, place: int) -> dict[str, Any]:
    """Of `FIELDS[place]`: asked once for all drafters."""
    return ask(url, **FIELDS[place])


@pytest.mark.parametrize("place", range(len(FIELDS)))
def test_a_drafted_reply_is_the_plain_one(drafted: str, plain: str, place: int) -> None:
    expected = plain_reply(plain, place)
    found = ask(drafted, **FIELDS[place])
    assert [choice["message"]["content"] for choice in found["choices"]] == [
        choice["message"]["content"] for choice in expected["choices"]
    ]
    assert found["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"]
    assert guesses(expected) == (0, 0)


def test_copying_is_guessed_and_counted(drafted: str) -> None:
    # Whether a guess pays depends on this machine's step times; a bound from the request does not.
    accepted, _ = guesses(ask(drafted, prediction={"type": "content", "content": TEXT}))
    off = ask(drafted, speculative={"max_draft": 0})
    assert guesses(off) == (0, 0)
    assert 0 <= accepted <= off["usage"]["completion_tokens"]


def test_logprobs_of_a_drafted_reply_are_those_of_the_plain_one(drafted: str, plain: str) -> None:
    entries = [ask(url, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"] for url in (drafted, plain)]
    assert [entry["token"] for entry in entries[0]] == [entry["token"] for entry in entries[1]]
    for found, expected in zip(*entries, strict=True):  # in default mode kernels differ in their last bits
        assert found["logprob"] == pytest.approx(expected["logprob"], abs=0.1)


def test_metrics_say_what_became_of_the_guesses(drafted: str) -> None:
    with httpx.Client(base_url=drafted) as client:
        ask(drafted, prediction={"type": "content", "content": TEXT})
        samples = scrape(client)
    assert value(samples, "drafter_on") == 1
    assert value(samples, "draft_calls_total") > 0
    assert value(samples, "draft_drafting_seconds_total") > 0
    proposed = of_source(samples, "draft_proposed_tokens_total")
    accepted = of_source(samples, "draft_accepted_tokens_total")
    assert proposed
    for (source, position), count in proposed.items():
        assert 0 <= accepted.get((source, position), 0) <= count
        assert count <= proposed[source, "1"]
    for source in {source for source, _ in proposed}:
        held = sum(count for (its, _), count in accepted.items() if its == source)
        assert value(samples, "draft_accepted_length_sum", source=source) == held
        assert value(samples, "draft_accepted_length_count", source=source) == proposed[source, "1"]
        assert value(samples, "draft_accepted_length_bucket", source=source, le="16.0") == proposed[source, "1"]


def of_source(samples: Samples, name: str) -> dict[tuple[str, str], float]:
    return {
        (dict(labels)["source"], dict(labels)["position"]): count
        for (found, labels), count in samples.items()
        if found == f"ortserve_{name}"
    }


def test_without_a_drafter_there_are_no_metrics_of_one(plain: str) -> None:
    with httpx.Client(base_url=plain) as client:
        assert not [name for name, _ in scrape(client) if name.startswith("ortserve_draft")]


def drafter_options(*words: str) -> Pairs:
    return settings_of(*words).models[0].drafter.drafter_option


def draft_model(words: Sequence[str], resolve: Callable[[str | None], Path]) -> str | None:
    (model,) = settings_of(*words).models
    return find_draft_model(model.drafter, model.entry.model, resolve)


def test_options_reach_the_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--drafter-option", "sources=prediction,model", "--drafter-option", "model.chunk=64"]
    wanted = (("sources", "prediction,model"), ("model.chunk", "64"))
    assert drafter_options(*words) == wanted
    monkeypatch.setenv("ORTSERVE_DRAFTER_OPTION", "sources=prediction,model, model.chunk=64")
    assert drafter_options() == wanted
    monkeypatch.setenv("ORTSERVE_DRAFTER_OPTION", "=5")
    with pytest.raises(ConfigurationError, match="ORTSERVE_DRAFTER_OPTION: '=5' is not of the form KEY=VALUE"):
        drafter_options()


@pytest.mark.parametrize(
    ("words", "resolved"),
    [
        (["--drafter", "model"], "pocket-draft"),
        (["pocket", "--drafter", "model"], "pocket-draft"),
        (["--drafter", "combined", "--drafter-option", "sources=model,suffix"], "pocket-draft"),
        (["--drafter", "combined"], None),
        (["some/other", "--drafter", "model"], None),
        (["some/other", "--drafter", "strangers", "--draft-model", "some/draft"], "some/draft"),
    ],
)
def test_the_bundled_model_has_a_small_one_of_its_own(words: list[str], resolved: str | None) -> None:
    asked: list[str | None] = []

    def resolve(name: str | None) -> Path:
        asked.append(name)
        return Path("exported")

    found = draft_model(words, resolve)
    assert (found, asked) == ((None, []) if resolved is None else ("exported", [resolved]))


def test_an_exported_small_model_is_taken_as_it_is(pocket_draft: Path) -> None:
    def resolve(name: str | None) -> Path:
        raise AssertionError(name)

    words = ("some/other", "--drafter", "model", "--draft-model", str(pocket_draft))
    assert draft_model(words, resolve) == str(pocket_draft)


def test_the_drafter_without_its_model_says_what_to_do(pocket: Path) -> None:
    with pytest.raises(PluginUnusableError, match=r"the drafter model cannot start .*--draft-model"):
        open_pocket(pocket, drafter="model")
