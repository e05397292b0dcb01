"""No field is silently ignored: the tables know every field of the specifications, and bodies are read as they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ortserve.gateway.documentation.markdown import with_tables
from ortserve.gateway.errors import ApiError
from ortserve.gateway.request_fields.endpoints import BODIES, BodyContract, table_of
from ortserve.gateway.request_fields.rules import Rule, Verdict
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.fields import Fields
from tests.gateway.bodies import HONOURED, READERS, REFUSED, Body
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying
from tests.gateway.specification import SPECIFICATIONS, fields_of

PAGE = Path(__file__).parents[2] / "gateway" / "README.md"
OWN = [body for place, body in enumerate(BODIES) if body.table not in [other.table for other in BODIES[:place]]]
COMPANIONS: dict[str, Body] = {  # what a field is only allowed with
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
    "max_tokens": {"echo": True},
    "continue_final_message": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
}
# Values of other types than the key, some of which Python would take for one of it.
OTHERS: dict[str, tuple[object, ...]] = {
    "integer": ({"a": [1]}, "1", 1.5, True),
    "number": ({"a": [1]}, "1", True),
    "boolean": ({"a": [1]}, "true", 1),
    "string": ({"a": [1]}, ["x"], 1, True),
}


def names(body: BodyContract) -> str:
    return body.path


@pytest.mark.parametrize("path", [body.path for body in BODIES if body.path in SPECIFICATIONS])
def test_every_field_of_the_specification_has_a_verdict(path: str) -> None:
    table = table_of(path)
    undecided = [field for field in fields_of(SPECIFICATIONS[path]) if table.verdict_of(field) is None]
    assert undecided == [], "add a line to the endpoint's file in gateway/request_fields"


def test_a_field_without_a_verdict_is_found() -> None:
    table = FieldTable(rule for rule in table_of("/v1/chat/completions").rules if rule.path != "verbosity")
    assert table.verdict_of("verbosity") is None
    assert table.verdict_of("stream_options.newest") is None
    assert table.verdict_of("moderation.policy.input") is Verdict.REFUSED
    assert table.verdict_of("chat_template_kwargs.anything") is Verdict.HONOURED


class Spy(dict[str, Any]):
    """A JSON object that notes which of its fields were looked at."""

    def __init__(self, values: Body, path: str, seen: set[str]) -> None:
        super().__init__({key: spied(value, f"{path}{key}", seen) for key, value in values.items()})
        self._path = path
        self._seen = seen

    def get(self, key: str, default: Any = None) -> Any:
        self._seen.add(f"{self._path}{key}")
        return super().get(key, default)


def spied(value: Any, path: str, seen: set[str]) -> Any:
    if isinstance(value, dict):
        return Spy(value, f"{path}.", seen)
    if isinstance(value, list):
        return [spied(item, f"{path}[]", seen) for item in value]
    return value


def paths_in(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            below = f"{path}.{key}" if path else key
            yield below
            yield from paths_in(inner, below)
    elif isinstance(value, list):
        for item in value:
            yield from paths_in(item, f"{path}[]")


@pytest.mark.parametrize("contract", OWN, ids=names)
def test_honoured_fields_are_read(contract: BodyContract) -> None:
    honoured = {rule.path for rule in contract.table.rules if rule.verdict is Verdict.HONOURED}
    seen: set[str] = set()
    used: set[str] = set()
    for body in HONOURED[contract.path]:
        assert contract.table.unheeded(body).header() == ""
        READERS[contract.path](Fields(Spy(body, "", seen)))
        used |= set(paths_in(body))
    assert honoured - used == set(), "tests/gateway/bodies.py does not use these"
    assert honoured - seen == set(), "nobody reads these"


@pytest.mark.parametrize("contract", OWN, ids=names)
def test_refused_fields_are_refused_by_name(contract: BodyContract) -> None:
    refused = {rule.path: rule for rule in contract.table.rules if rule.verdict is Verdict.REFUSED}
    assert set(REFUSED[contract.path]) == set(refused)
    for path, body in REFUSED[contract.path].items():
        with pytest.raises(ApiError) as caught:
            READERS[contract.path](Fields(body))
        problem = caught.value.problem
        assert problem.status == 400
        parent = path.rpartition(".")[0]
        param = re.sub(r"\[\d+\]", "[]", problem.param or "")
        assert param in (path, f"{parent}.type"), f"{path}: {param} is named instead"


@pytest.mark.parametrize("contract", OWN, ids=names)
def test_neutral_values_are_accepted_and_not_reported(contract: BodyContract) -> None:
    for rule in top_level(contract):
        for value in rule.neutral:
            body = {**smallest(contract), rule.path: value}
            READERS[contract.path](Fields(body))
            assert contract.table.unheeded(body).header() == ""


@pytest.mark.parametrize("contract", OWN, ids=names)
def test_ignored_fields_are_accepted_and_reported(contract: BodyContract) -> None:
    for rule in top_level(contract):
        if rule.verdict is Verdict.IGNORED:
            value = next(value for value in samples(rule.shape) if value not in rule.neutral or len(rule.neutral) > 1)
            if value in rule.neutral:
                continue  # all its values are
            body = {**smallest(contract), rule.path: value}
            READERS[contract.path](Fields(body))
            assert contract.table.unheeded(body).ignored == (rule.path,)


@pytest.mark.parametrize("contract", OWN, ids=names)
def test_intervals_are_those_that_bodies_are_read_with(contract: BodyContract) -> None:
    read = READERS[contract.path]
    for rule in top_level(contract):
        if rule.verdict is not Verdict.HONOURED or rule.shape.get("type") not in ("integer", "number"):
            continue
        for bound, step in (("minimum", -1), ("maximum", 1)):
            limit: Any = rule.shape.get(bound)
            if limit is None:
                continue
            base = {**smallest(contract), **COMPANIONS.get(rule.path, {})}
            read(Fields({**base, rule.path: limit}))
            assert refusal(contract, {**base, rule.path: limit + step}) == rule.path


@pytest.mark.parametrize("contract", OWN, ids=names)
def test_other_types_are_refused_by_name(contract: BodyContract) -> None:
    for rule in top_level(contract):
        others = OTHERS.get(str(rule.shape.get("type")), ()) if rule.verdict is Verdict.HONOURED else ()
        for other in others:
            body = {**smallest(contract), **COMPANIONS.get(rule.path, {}), rule.path: other}
            assert refusal(contract, body) == rule.path, other


def refusal(contract: BodyContract, body: Body) -> str | None:
    with pytest.raises(ApiError) as caught:
        READERS[contract.path](Fields(body))
    return caught.value.problem.param


def top_level(contract: BodyContract) -> list[Rule]:
    return [rule for rule in contract.table.rules if "." not in rule.path]


def smallest(contract: BodyContract) -> Body:
    """Only what is required."""
    if contract.path == "/admin/cache/warm":
        return {"prompt": "hi"}
    if contract.path == "/v1/tokenize":
        return {"messages": [{"role": "user", "content": "hi"}]}
    if contract.path == "/v1/responses":
        return {"input": "hi"}
    return {
        key: value
        for key, value in HONOURED[contract.path][0].items()
        if any(rule.path == key and rule.is_required for rule in contract.table.rules)
    }


def samples(shape: Any) -> Iterator[Any]:
    if "anyOf" in shape:
        for option in shape["anyOf"]:
            yield from samples(option)
    elif "enum" in shape:
        yield from reversed(shape["enum"])
    else:
        made: dict[Any, list[Any]] = {
            "string": ["x"], "boolean": [True], "integer": [shape.get("minimum", 1)], "number": [1.0],
            "object": [{"a": "b"}], "array": [["x"]], None: ["x"],
        }  # fmt: skip
        yield from made[shape.get("type")]


def test_the_page_has_the_tables() -> None:
    page = PAGE.read_text()
    assert with_tables(page) == page, "run: python -m ortserve.gateway.documentation.markdown gateway/README.md"


CHAT_PATH = "/v1/chat/completions"
CHAT: Body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


def test_replies_name_what_had_no_effect(http: httpx.Client) -> None:
    assert "x-ortserve-ignored" not in http.post(CHAT_PATH, json={**CHAT, "store": False}).headers
    body = {
        **CHAT, "user": "me", "frobnicate": 1, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "colour": "red"}], "mood": "good"}],
        "nothing": None, "empty": [],
    }  # fmt: skip
    response = http.post(CHAT_PATH, json=body)
    assert response.status_code == 200
    assert response.headers["x-ortserve-ignored"].split(", ") == [
        "user", "messages[].content[].colour", "messages[].mood", "frobnicate", "stream_options.continuous_usage_stats",
    ]  # fmt: skip


def test_refusals_name_it_too(http: httpx.Client) -> None:
    response = http.post(CHAT_PATH, json={**CHAT, "temperature": 9, "frobnicate": 1})
    assert response.status_code == 400
    assert response.headers["x-ortserve-ignored"] == "frobnicate"


def test_any_name_makes_a_header_of_bounded_length(http: httpx.Client) -> None:
    strange = {"a\r\nset-cookie: b": 1, "\u00e9,": 2, "x" * 10_000: 3, **{f"f{index}": index for index in range(100)}}
    header = http.post(CHAT_PATH, json={**CHAT, **strange}).headers["x-ortserve-ignored"]
    assert header.startswith("a%0D%0Aset-cookie:%20b, %C3%A9%2C, " + "x" * 100 + ", f0, ")
    assert header.endswith("f28, +71")


def test_what_had_no_effect_is_counted(http: httpx.Client) -> None:
    def counted(field: str) -> float:
        pattern = rf'^ortserve_ignored_fields_total{{field="{field}",route="{CHAT_PATH}"}} (\S+)$'
        found = re.search(pattern, http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    before = counted("safety_identifier"), counted("unknown")
    http.post(CHAT_PATH, json={**CHAT, "safety_identifier": "x", "a-secret": 1, "another": 2})
    assert (counted("safety_identifier"), counted("unknown")) == (before[0] + 1, before[1] + 2)
    assert "a-secret" not in http.get("/metrics").text


def test_strict_parameters() -> None:
    with (
        running(make_driver(saying("hi")), strict_parameters=True) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert client.post(CHAT_PATH, json={**CHAT, "user": "me", "unset": None}).status_code == 200
        nested = {"stream": True, "stream_options": {"verbose": True}}
        for unknown, param in (({"frobnicate": 1}, "frobnicate"), (nested, "stream_options.verbose")):
            response = client.post(CHAT_PATH, json={**CHAT, **unknown})
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["param"]) == (400, "unknown_parameter", param)
        twice = b'{"model": "scripted", "messages": [], "temperature": 1, "temperature": 2}'
        error = client.post(CHAT_PATH, content=twice).json()["error"]
        assert (error["code"], error["param"]) == ("duplicate_parameter", "temperature")


def test_of_equal_names_the_last_counts(http: httpx.Client) -> None:
    body = b'{"model": "other", "model": "scripted", "messages": [{"role": "user", "content": "hi"}]}'
    assert http.post(CHAT_PATH, content=body).status_code == 200


ITEMS: list[Body] = [
    {"role": "user", "content": [{"type": "input_text", "text": "hi", "colour": "red"}], "mood": "good"},
    {"type": "reasoning", "summary": [], "encrypted_content": "x", "depth": {"a": 1}},
    {"type": "web_search_call", "status": "completed", "action": {"type": "search", "whatever": 1}},
    {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": None}]},
]


def test_items_are_looked_into(http: httpx.Client) -> None:
    response = http.post("/v1/responses", json={"model": "scripted", "input": ITEMS})
    assert response.status_code == 200, response.text
    assert response.headers["x-ortserve-ignored"].split(", ") == [
        "input[].encrypted_content", "input[].action",
        "input[].content[].colour", "input[].mood", "input[].depth",
    ]  # fmt: skip
    kept = http.get(f"/v1/responses/{response.json()['id']}/input_items?order=asc").json()["data"]
    assert kept[2]["action"] == ITEMS[2]["action"], "without effect on the reply, and kept"


def test_items_with_unknown_fields_are_refused_where_all_are() -> None:
    body = {"model": "scripted", "input": ITEMS}
    with (
        running(make_driver(saying("x")), strict_parameters=True) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        response = http.post("/v1/responses", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "input[].content[].colour"
        known = [{**ITEMS[0], "mood": None, "content": "hi"}, *ITEMS[2:]]
        assert http.post("/v1/responses", json={**body, "input": known}).status_code == 200
