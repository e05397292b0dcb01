"""/v1/embeddings: every shape of input, both encodings, usage, dimensions, prompts, limits, errors, and in batches."""

from __future__ import annotations

import asyncio
import base64
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from starlette.routing import Route

from ortserve.gateway.app import build_app
from ortserve.gateway.http.server import Limits
from ortserve.runtime.encoders.driver import EncoderLimits
from ortserve.runtime.encoders.queue import EncoderInput as Ids
from ortserve.runtime.opening import open_encoder
from tests.gateway.encoders import CLS, SEP, Encoders, ids_of, open_encoders, vector_of, write_encoder
from tests.gateway.fleets import fleet_of
from tests.gateway.running import serving
from tests.gateway.scripted import make_driver, saying
from tests.gateway.test_batches import begin, line, results, wait_for_status
from tests.runtime.synthetic_encoder import MAX_LENGTH, expected
from tests.waiting import PATIENCE_S, wait_for

PATH = "/v1/embeddings"
PROMPTS = {"query": "query: ", "document": "document: "}
GENERATION_PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/input_tokens", "/v1/messages",
    "/v1/messages/count_tokens", "/v1/tokenize", "/v1/detokenize",
)  # fmt: skip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    root = tmp_path_factory.mktemp("encoders")
    folders = [
        write_encoder(root / "averages"),
        write_encoder(root / "matryoshka", name="matryoshka", dimensions=(2, 4), normalized=True, prompts=PROMPTS),
        write_encoder(root / "judge", name="judge", task="rerank", num_outputs=1, output_name="scores"),
    ]
    return open_encoders(folders, scripted=make_driver(saying("hello")))


@pytest.fixture(scope="module")
def http(encoders: Encoders) -> Iterator[httpx.Client]:
    with (
        serving(encoders.services, encoders.close, Limits(drain_s=1.0)) as (port, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        yield client


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "averages", "input": "one two three", **fields}


def post(http: httpx.Client, **fields: Any) -> Any:
    response = http.post(PATH, json=body(**fields))
    assert response.status_code == 200, response.text
    return response.json()


def refused(http: httpx.Client, status: int = 400, **fields: Any) -> dict[str, Any]:
    response = http.post(PATH, json=body(**fields))
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_one_text(http: httpx.Client) -> None:
    reply = post(http)
    assert reply["object"] == "list"
    assert reply["model"] == "averages"
    assert reply["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    (data,) = reply["data"]
    assert (data["object"], data["index"]) == ("embedding", 0)
    np.testing.assert_allclose(data["embedding"], vector_of("one two three"), atol=1e-6)


def test_texts_keep_their_order_whatever_their_lengths(http: httpx.Client) -> None:
    texts = ["five", "one two three four five six", "two two", "seven " * 40, "six"]
    reply = post(http, input=texts)
    assert [data["index"] for data in reply["data"]] == list(range(5))
    for text, data in zip(texts, reply["data"], strict=True):
        np.testing.assert_allclose(data["embedding"], vector_of(text), atol=1e-6)
    assert reply["usage"]["prompt_tokens"] == sum(len(ids_of(text)) + 2 for text in texts)


def test_base64_is_little_endian_float32(http: httpx.Client) -> None:
    floats = post(http)["data"][0]["embedding"]
    text = post(http, encoding_format="base64")["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == floats


def test_the_sdk_reads_both_encodings(http: httpx.Client) -> None:
    client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="any")
    by_default = client.embeddings.create(model="averages", input=["one", "two three"])  # asks for base64
    plain = client.embeddings.create(model="averages", input=["one", "two three"], encoding_format="float", user="me")
    for left, right, text in zip(by_default.data, plain.data, ("one", "two three"), strict=True):
        assert left.embedding == right.embedding
        np.testing.assert_allclose(left.embedding, vector_of(text), atol=1e-6)
    assert by_default.usage.prompt_tokens == 7


def test_2048_inputs_and_not_one_more(http: httpx.Client) -> None:
    reply = post(http, input=["one"] * 2047 + ["two two"], encoding_format="base64")
    assert len(reply["data"]) == 2048
    last = np.frombuffer(base64.b64decode(reply["data"][-1]["embedding"]), "<f4")
    np.testing.assert_allclose(last, vector_of("two two"), atol=1e-6)
    error = refused(http, input=["one"] * 2049)
    assert (error["code"], error["param"]) == ("array_above_max_length", "input")
    assert "maximum length 2048" in error["message"]


def test_shorter_embeddings_where_the_model_allows_them(http: httpx.Client) -> None:
    whole = np.array(post(http, model="matryoshka")["data"][0]["embedding"])
    short = post(http, model="matryoshka", dimensions=4)["data"][0]["embedding"]
    np.testing.assert_allclose(short, whole[:4] / np.linalg.norm(whole[:4]), atol=1e-6)
    assert post(http, model="matryoshka", dimensions=8)["data"][0]["embedding"] == whole.tolist()
    error = refused(http, model="matryoshka", dimensions=3)
    assert (error["param"], error["code"]) == ("dimensions", "invalid_value")
    assert "2, 4, 8" in error["message"]
    assert "8 dimensions, not 4" in refused(http, dimensions=4)["message"]


def test_prompts_are_put_before_the_text(http: httpx.Client) -> None:
    reply = post(http, model="matryoshka", prompt_name="query")
    np.testing.assert_allclose(reply["data"][0]["embedding"], vector_of("query: one two three"), atol=1e-6)
    assert reply["usage"]["prompt_tokens"] == 7
    error = refused(http, model="matryoshka", prompt_name="nothing")
    assert "it has 'document', 'query'" in error["message"]


def test_a_text_beyond_the_limit_is_named(http: httpx.Client) -> None:
    fits = "one " * (MAX_LENGTH - 2)
    post(http, input=fits)
    error = refused(http, input=["one", fits + "one"])
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input[1]")
    assert f"maximum context length is {MAX_LENGTH} tokens, but the prompt is too long" in error["message"]
    assert f"{MAX_LENGTH + 1} tokens" in error["message"]


@pytest.mark.parametrize(("truncate", "kept"), [(-1, MAX_LENGTH), (10, 10), (10_000, MAX_LENGTH)])
def test_what_is_too_long_is_cut_on_request(http: httpx.Client, truncate: int, kept: int) -> None:
    reply = post(http, input="one " * 50 + "two " * 50, truncate_prompt_tokens=truncate)
    assert reply["usage"]["prompt_tokens"] == kept
    wanted = (CLS, *ids_of("one " * 50 + "two " * 50)[: kept - 2], SEP)
    np.testing.assert_allclose(reply["data"][0]["embedding"], expected(Ids(wanted)), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, "missing_required_parameter", "input"),
        ({"model": None}, "missing_required_parameter", "model"),
        ({"input": ""}, "empty_string", "input"),
        ({"input": ["one", ""]}, "empty_string", "input[1]"),
        ({"input": []}, "empty_array", "input"),
        ({"input": [[]]}, "empty_array", "input[0]"),
        ({"input": 3}, "invalid_type", "input"),
        ({"input": ["one", 3]}, "invalid_type", "input[1]"),
        ({"input": [1, "one"]}, "invalid_type", "input[1]"),
        ({"input": [True]}, "invalid_type", "input[0]"),
        ({"input": {"text": "one"}}, "invalid_type", "input"),
        ({"encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"dimensions": 0}, "integer_below_min_value", "dimensions"),
        ({"dimensions": "8"}, "invalid_type", "dimensions"),
        ({"truncate_prompt_tokens": 0}, "integer_below_min_value", "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "integer_below_min_value", "truncate_prompt_tokens"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, fields: dict[str, Any], code: str, param: str) -> None:
    error = refused(http, **fields)
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")


def test_a_model_for_something_else_says_what_for(http: httpx.Client) -> None:
    assert "scores pairs of texts: use /v1/rerank" in refused(http, model="judge")["message"]
    assert "generates text: use /v1/chat/completions" in refused(http, model="scripted")["message"]
    missing = refused(http, 404, model="unknown")
    assert missing["code"] == "model_not_found"
    assert "`scripted`, `averages`, `matryoshka`, `judge`" in missing["message"]
    chat = http.post("/v1/chat/completions", json={"model": "averages", "messages": [{"role": "user", "content": "x"}]})
    assert chat.status_code == 400
    assert chat.json()["error"]["code"] == "unsupported_model"
    assert "makes embeddings: use /v1/embeddings" in chat.json()["error"]["message"]


def test_the_model_that_generates_still_does(http: httpx.Client) -> None:
    reply = http.post(
        "/v1/chat/completions", json={"model": "scripted", "messages": [{"role": "user", "content": "x"}]}
    )
    assert reply.json()["choices"][0]["message"]["content"] == "hello"


def test_all_models_are_listed(http: httpx.Client) -> None:
    data = http.get("/v1/models").json()["data"]
    assert [one["id"] for one in data] == ["scripted", "averages", "matryoshka", "judge"]
    one = http.get("/v1/models/matryoshka").json()
    assert one == {
        "id": "matryoshka", "object": "model", "created": 17, "owned_by": "ortserve", "max_model_len": MAX_LENGTH,
        "context_length": MAX_LENGTH, "verified": True, "task": "embeddings", "dimensions": [2, 4, 8],
        "prompt_names": ["document", "query"], "state": "ready",
    }  # fmt: skip
    assert http.get("/v1/models/nothing").status_code == 404


def test_token_ids_are_refused_unless_they_are_wanted(http: httpx.Client, encoders: Encoders) -> None:
    for value in ([5, 6], [[5, 6], [7]], ["one", [5]]):
        error = refused(http, input=value)
        assert "check_embedding_ctx_length=False" in error["message"]
        assert error["param"] == "input"
    wanted = open_encoders(encoders.folders[:1], accepts_token_ids=True)
    with (
        serving(wanted.services, wanted.close, Limits(drain_s=1.0)) as (port, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        np.testing.assert_allclose(
            post(client, input=[5, 6, 7])["data"][0]["embedding"], expected(Ids((5, 6, 7))), atol=1e-6
        )
        reply = post(client, input=[[5], "one", [8, 9]])
        np.testing.assert_allclose(reply["data"][0]["embedding"], expected(Ids((5,))), atol=1e-6)
        np.testing.assert_allclose(reply["data"][1]["embedding"], vector_of("one"), atol=1e-6)
        np.testing.assert_allclose(reply["data"][2]["embedding"], expected(Ids((8, 9))), atol=1e-6)
        assert reply["usage"]["total_tokens"] == 6
        assert "token id outside 0 to 299" in refused(client, input=[5, 300])["message"]


def test_a_server_of_encoders_alone(tmp_path: Path) -> None:
    alone = open_encoders([write_encoder(tmp_path)])
    with (
        serving(alone.services, alone.close, Limits(drain_s=1.0)) as (port, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        post(client)
        for path in GENERATION_PATHS:
            answer = client.post(path, json={"model": "averages"})
            assert answer.status_code == 400
            assert "makes embeddings" in answer.json()["error"]["message"]
            assert client.post(path, json={"model": "nothing"}).status_code == 404
        assert client.get("/health").json() == {
            "status": "ok", "model": "averages", "encoders": [{"model": "averages", "waiting": 0}],
        }  # fmt: skip


def test_an_encoder_that_hangs_is_no_more_asked_and_only_a_new_process_helps(tmp_path: Path) -> None:
    folder, is_over = write_encoder(tmp_path), threading.Event()
    driver = open_encoder(folder, EncoderLimits(run_limit_s=0.1), num_threads=1)
    driver._encoder.encode = lambda _: is_over.wait(10 * PATIENCE_S)  # type: ignore[method-assign,assignment,return-value]
    both = Encoders([folder], [driver], make_driver(saying("hello")))
    with (
        serving(both.services, both.close, Limits(drain_s=1.0)) as (port, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client,
    ):
        assert client.get("/health/live").status_code == 200
        for _ in range(2):  # the first is told by its watchdog, the second that nothing is taken any more
            answer = client.post(PATH, json=body())
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_unavailable")
            assert "retry-after" in answer.headers
            wait_for(lambda: client.get("/health/live").status_code == 503)
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "hung")
        (noted,) = ready.json()["models"]
        assert (noted["model"], noted["state"]) == ("averages", "failed")
        assert re.fullmatch(
            r"a run of the encoder has not ended for \d+ s: this process has to be restarted", noted["error"]
        )
        metrics = client.get("/metrics").text
        assert 'ortserve_engine_hung{model="averages"} 1.0' in metrics
        assert 'ortserve_engine_hung{model="scripted"} 0.0' in metrics
        chat = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
        assert client.post("/v1/chat/completions", json=chat).status_code == 200  # until the process is gone
        is_over.set()


def test_every_path_that_needs_a_model_that_generates_is_known(encoders: Encoders) -> None:
    async def paths() -> set[str]:
        routes = build_app(await fleet_of(*encoders.services())).routes
        return {route.path for route in routes if isinstance(route, Route) and "POST" in (route.methods or ())}

    own = {"/v1/embeddings", "/v1/rerank", "/v1/score"}
    own |= {path for path in asyncio.run(paths()) if path.startswith(("/v1/files", "/v1/batches", "/v1/conversations"))}
    own |= {"/v1/responses/{id}/cancel", "/v1/chat/completions/{id}"}  # of what is kept
    assert {path for path in asyncio.run(paths()) if path.startswith("/v1/")} - own == set(GENERATION_PATHS)


def test_what_is_measured(http: httpx.Client) -> None:
    def counted(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        wanted = f'ortserve_encoder_{name}{{model="matryoshka"}}'
        return next(float(line.split()[-1]) for line in lines if line.startswith(wanted))

    before = counted("tokens_total"), counted("inputs_total"), counted("batches_total")
    post(http, model="matryoshka", input=["one", "two"])
    after = counted("tokens_total"), counted("inputs_total"), counted("batches_total")
    assert [new - old for new, old in zip(after, before, strict=True)] == [6, 2, 1]
    assert counted("waiting_inputs") == 0
    assert 'route="/v1/embeddings"' in http.get("/metrics").text


def test_a_batch_of_embeddings(http: httpx.Client) -> None:
    url, texts = "/v1/embeddings", {f"t{place}": f"a text of {place} words" for place in range(5)}
    lines = [line(id, url, **body(input=text)) for id, text in texts.items()]
    lines.append(line("wrong", url, **body(input=[])))
    reply = wait_for_status(http, begin(http, lines, url)["id"], "completed")
    assert reply["request_counts"] == {"total": 6, "completed": 5, "failed": 1}
    assert set(results(http, reply["error_file_id"])) == {"wrong"}
    num_tokens = 0
    for id, row in results(http, reply["output_file_id"]).items():
        answer, direct = row["response"]["body"], post(http, input=texts[id])
        # Which texts are encoded together changes the last bit of a sum.
        found, wanted = (one["data"][0].pop("embedding") for one in (answer, direct))
        assert np.allclose(found, wanted, rtol=1e-5, atol=1e-6)
        assert answer == direct
        num_tokens += direct["usage"]["total_tokens"]
    assert reply["usage"]["input_tokens"] == reply["usage"]["total_tokens"] == num_tokens
    assert reply["model"] == post(http, input="x")["model"]
