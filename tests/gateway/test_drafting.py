"""Speculation over the wire: replies that do not change, counts that are true, fields that are checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ortserve.gateway.errors import ApiError
from ortserve.gateway.schema.drafting import DraftWish, read_draft_wish
from ortserve.gateway.schema.fields import Fields
from tests.gateway.pocket import serving_pocket


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


@pytest.fixture(scope="module", params=["combined", "ngram"])
def drafted(request: pytest.FixtureRequest, pocket: Path) -> Iterator[str]:
    with serving_pocket(pocket, drafter=request.param) as url:
        yield url


@pytest.fixture(scope="module")
def plain(pocket: Path) -> Iterator[str]:
    with serving_pocket(pocket) as url:
        yield url


def ask(url: str, **fields: Any) -> dict[str, Any]:
    with httpx.Client(base_url=url, timeout=30) as client:
        body = {"model": "pocket", "messages": REPEAT, "temperature": 0, "max_tokens": 60, **fields}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        reply: dict[str, Any] = response.json()
        return reply


def guesses(reply: dict[str, Any]) -> tuple[int, int]:
    details = reply["usage"]["completion_tokens_details"]
    return details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.9, "seed": 5}, {"n": 2, "temperature": 1.0, "seed": 6}])
def test_a_drafted_reply_is_the_plain_one(drafted: str, plain: str, fields: dict[str, Any]) -> None:
    expected = ask(plain, **fields)
    found = ask(drafted, **fields)
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
