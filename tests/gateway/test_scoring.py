"""/v1/rerank and /v1/score: a cross-encoder's scores, a bi-encoder's cosines, order, cutting and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ortserve.gateway.http.server import Limits
from tests.gateway.encoders import cosine, ids_of, open_encoders, pair_score, write_encoder
from tests.gateway.running import serving
from tests.runtime.synthetic_encoder import MAX_LENGTH

DOCUMENTS = ["one two", "three", "four five six seven", "two one"]


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("encoders")
    prompts = {"query": "query: ", "passage": "document: "}
    encoders = open_encoders(
        [
            write_encoder(root / "judge", name="judge", task="rerank", num_outputs=1, output_name="scores"),
            write_encoder(root / "averages"),
            write_encoder(root / "prompted", name="prompted", prompts=prompts),
        ]
    )
    with (
        serving(encoders.services, encoders.close, Limits(drain_s=1.0)) as (port, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        yield client


def rerank(http: httpx.Client, **fields: Any) -> Any:
    response = http.post("/v1/rerank", json={"model": "judge", "query": "one", "documents": DOCUMENTS, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def score(http: httpx.Client, **fields: Any) -> Any:
    response = http.post("/v1/score", json={"model": "judge", "text_1": "one", "text_2": DOCUMENTS, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def refused(http: httpx.Client, path: str, status: int = 400, **fields: Any) -> dict[str, Any]:
    response = http.post(f"/v1/{path}", json={"model": "judge", **fields})
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize("model", ["judge", "averages", "prompted"])
def test_documents_come_most_relevant_first(http: httpx.Client, model: str) -> None:
    expected = {
        "judge": [pair_score("one", text) for text in DOCUMENTS],
        "averages": [cosine("one", text) for text in DOCUMENTS],
        "prompted": [cosine("query: one", f"document: {text}") for text in DOCUMENTS],
    }[model]
    reply = rerank(http, model=model)
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -expected[index])
    assert [result["index"] for result in reply["results"]] == order
    assert [result["relevance_score"] for result in reply["results"]] == pytest.approx(
        [expected[index] for index in order], abs=1e-5
    )
    assert all(set(result) == {"index", "relevance_score"} for result in reply["results"])
    assert reply["id"].startswith("rerank-")
    assert reply["model"] == model
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] > 0


def test_top_n_and_documents(http: httpx.Client) -> None:
    whole = rerank(http)["results"]
    best = rerank(http, top_n=2, return_documents=True)["results"]
    assert [result["index"] for result in best] == [result["index"] for result in whole[:2]]
    assert [result["document"]["text"] for result in best] == [DOCUMENTS[result["index"]] for result in best]
    assert len(rerank(http, top_n=99)["results"]) == len(DOCUMENTS)
    objects = rerank(http, documents=[{"text": text} for text in DOCUMENTS])["results"]
    assert objects == whole


def test_equal_scores_keep_the_order_of_the_documents(http: httpx.Client) -> None:
    assert [result["index"] for result in rerank(http, documents=["two"] * 5)["results"]] == [0, 1, 2, 3, 4]


def test_usage_counts_what_was_encoded(http: httpx.Client) -> None:
    lengths = [len(ids_of(text)) for text in DOCUMENTS]
    assert rerank(http)["usage"]["total_tokens"] == sum(lengths) + len(DOCUMENTS) * (1 + 3)
    assert rerank(http, model="averages")["usage"]["total_tokens"] == 3 + sum(length + 2 for length in lengths)


def test_score_pairs(http: httpx.Client) -> None:
    reply = score(http)
    assert [data["index"] for data in reply["data"]] == [0, 1, 2, 3]
    assert all(data["object"] == "score" for data in reply["data"])
    assert [data["score"] for data in reply["data"]] == pytest.approx(
        [pair_score("one", text) for text in DOCUMENTS], abs=1e-5
    )
    pairs = score(http, model="averages", text_1=["one", "two"], text_2=["two", "three"])
    assert [data["score"] for data in pairs["data"]] == pytest.approx(
        [cosine("one", "two"), cosine("two", "three")], abs=1e-5
    )
    assert len(score(http, text_2="three")["data"]) == 1
    assert reply["object"] == "list"


def test_long_documents_are_cut_only_on_request(http: httpx.Client) -> None:
    long = "two " * 100
    error = refused(http, "rerank", query="one", documents=["three", long])
    assert (error["code"], error["param"]) == ("context_length_exceeded", "documents[1]")
    cut = rerank(http, documents=["three", long], truncate_prompt_tokens=-1)
    assert cut["usage"]["total_tokens"] == 5 + MAX_LENGTH
    by_document = rerank(http, documents=["three", long], max_tokens_per_doc=3)["results"]
    scores = {result["index"]: result["relevance_score"] for result in by_document}
    assert scores[1] == pytest.approx(pair_score("one", "two two two"), abs=1e-5)
    assert scores[0] == pytest.approx(pair_score("one", "three"), abs=1e-5)
    cosines = rerank(http, model="averages", documents=[long], max_tokens_per_doc=3)["results"]
    assert cosines[0]["relevance_score"] == pytest.approx(cosine("one", "two two two"), abs=1e-5)
    prompted = rerank(http, model="prompted", documents=[long], max_tokens_per_doc=3)["results"]
    assert prompted[0]["relevance_score"] == pytest.approx(cosine("query: one", "document: two two two"), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "fields", "code", "param"),
    [
        ("rerank", {"documents": ["one"]}, "missing_required_parameter", "query"),
        ("rerank", {"query": "one"}, "missing_required_parameter", "documents"),
        ("rerank", {"query": "", "documents": ["one"]}, "empty_string", "query"),
        ("rerank", {"query": "one", "documents": []}, "empty_array", "documents"),
        ("rerank", {"query": "one", "documents": ["one", ""]}, "empty_string", "documents[1]"),
        ("rerank", {"query": "one", "documents": [4]}, "invalid_type", "documents[0]"),
        ("rerank", {"query": "one", "documents": [{}]}, "missing_required_parameter", "documents[0].text"),
        ("rerank", {"query": "one", "documents": ["x"] * 2049}, "array_above_max_length", "documents"),
        ("rerank", {"query": "one", "documents": ["x"], "top_n": 0}, "integer_below_min_value", "top_n"),
        ("rerank", {"query": "one", "documents": ["x"], "rank_fields": ["a"]}, "unsupported_parameter", "rank_fields"),
        ("score", {"text_2": "one"}, "missing_required_parameter", "text_1"),
        ("score", {"text_1": ["one", "two"], "text_2": ["one"]}, "invalid_value", "text_2"),
        ("score", {"text_1": "", "text_2": ["one"]}, "empty_string", "text_1"),
        ("score", {"text_1": "one", "text_2": ["one", 2]}, "invalid_type", "text_2[1]"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, path: str, fields: dict[str, Any], code: str, param: str) -> None:
    error = refused(http, path, **fields)
    assert (error["code"], error["param"]) == (code, param)


def test_unknown_models(http: httpx.Client) -> None:
    assert refused(http, "rerank", 404, model="x", query="one", documents=["two"])["code"] == "model_not_found"
    assert refused(http, "score", 404, model="x", text_1="one", text_2=["two"])["code"] == "model_not_found"
