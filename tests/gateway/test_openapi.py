"""The served description: a valid document, of all routes and no others, whose bodies are those that are accepted."""

from __future__ import annotations

import re
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from ortserve.gateway.documentation.operations import OPERATIONS
from ortserve.gateway.request_fields.endpoints import table_of
from ortserve.gateway.request_fields.rules import Verdict
from tests.gateway.bodies import HONOURED
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    response = http.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


def test_it_is_a_valid_document(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)


def test_it_describes_the_routes_there_are_and_no_others(document: dict[str, Any], http: httpx.Client) -> None:
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(operation.method, operation.path) for operation in OPERATIONS}
    for method, path in described:
        allowed = http.request("PATCH", re.sub(r"{\w+}", "x", path)).headers.get("allow", "")
        if not path.startswith("/admin"):  # which do not exist without a key
            assert method in allowed.split(", "), f"{method} {path} is described and not served"


@pytest.mark.parametrize("path", sorted(HONOURED))
def test_bodies_that_are_accepted_fit_their_schema(document: dict[str, Any], path: str) -> None:
    operation = document["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    for body in HONOURED[path]:
        jsonschema.Draft202012Validator(schema).validate(body)
    for rule in table_of(path).rules:
        if rule.verdict is Verdict.REFUSED and not rule.neutral and "." not in rule.path:
            assert rule.path not in schema["properties"]


def test_replies_fit_their_schema(document: dict[str, Any], http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": messages, "logprobs": True, "top_logprobs": 1}),
        ("/v1/completions", {"prompt": "hi", "logprobs": 1}),
        ("/v1/messages", {"messages": messages, "max_tokens": 5}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/models", None),
        ("/v1/models/scripted", None),
    ):
        described = document["paths"]["/v1/models/{id}" if path.endswith("scripted") else path]
        operation = described["get" if body is None else "post"]
        response = http.get(path) if body is None else http.post(path, json={"model": "scripted", **body})
        assert response.status_code == 200, response.text
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
        validator.validate(response.json())
        incomplete = {key: value for key, value in response.json().items() if key not in ("id", "data")}
        assert list(validator.iter_errors(incomplete)), f"{path}: anything fits"
    error = http.post("/v1/completions", json={}).json()
    jsonschema.Draft202012Validator(document["components"]["schemas"]["Error"]).validate(error)


def test_the_page_shows_every_endpoint_and_loads_nothing(document: dict[str, Any], http: httpx.Client) -> None:
    response = http.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    for path in document["paths"]:
        assert f"<code>{path}</code>" in response.text
    assert "stream_options.include_usage" in response.text
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|<script""", response.text)


def test_it_is_closed_like_everything_else() -> None:
    with running(make_driver(saying("hi")), api_key="k") as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/openapi.json").status_code == 401
        assert client.get("/docs", headers={"authorization": "Bearer k"}).status_code == 200


def test_parameters_of_queries_are_those_that_are_read(document: dict[str, Any], http: httpx.Client) -> None:
    """Each has a wrong value that is refused by its name, and lists take all that is said of them."""
    described = 0
    for path, methods in document["paths"].items():
        for parameter in methods.get("get", {}).get("parameters", ()):
            if parameter["in"] != "query" or path.startswith("/admin"):
                continue
            name, shape = parameter["name"], parameter["schema"]
            described += 1
            if "default" in shape:
                url = path.replace("{id}", "x").replace("{item_id}", "y")
                error = http.get(url, params={name: "wrong"}).json()["error"]
                assert error["param"] == name or error["code"] == "not_found", f"{path}: {name}"
    assert described > 25


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files", "/v1/batches"])
def test_limits_of_lists_are_those_described(document: dict[str, Any], http: httpx.Client, path: str) -> None:
    parameters = document["paths"][path]["get"]["parameters"]
    assert {"limit", "order", "after", "before"} <= {parameter["name"] for parameter in parameters}
    (limit,) = [parameter["schema"] for parameter in parameters if parameter["name"] == "limit"]
    for value, status in ((limit["maximum"], 200), (limit["maximum"] + 1, 400), (limit["minimum"] - 1, 400)):
        assert http.get(path, params={"limit": value}).status_code == status
    assert http.get(path, params={"order": "upwards"}).json()["error"]["param"] == "order"
    assert http.get(path, params={"after": "nothing"}).json()["error"]["param"] == "after"
