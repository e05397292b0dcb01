"""What callers and operators see of models that come and go: readiness, refusals, administration, recovery."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from ortserve.gateway import cli
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.fleet.member import Tools
from ortserve.gateway.fleet.memory import resident_weights
from ortserve.gateway.fleet.opening import FolderOpener, find_prepared
from ortserve.gateway.fleet.spec import ModelSpec
from ortserve.gateway.http.server import Limits
from ortserve.gateway.options.model import EngineSettings
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.host.threads import share_cores
from ortserve.runtime.workers.restarts import Restarts
from tests.gateway.encoders import write_encoder
from tests.gateway.fleet.opener import ROOM_FOR_TWO, ScriptedOpener, make_fleet, spec_of
from tests.gateway.running import serving
from tests.gateway.synthetic import expected, write_synthetic_text_model
from tests.gateway.test_metrics import scrape, value
from tests.waiting import PATIENCE_S, wait_for

BOSS = {"authorization": "Bearer boss"}
USER = {"authorization": "Bearer user"}


@contextmanager
def served(fleet: Fleet, **options: Any) -> Iterator[httpx.Client]:
    options = {"admin_key": "boss", "new_model": spec_of, **options}
    with (
        serving(lambda: fleet, lambda **_: fleet.drain(0.0), Limits(drain_s=1.0), **options) as (port, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        yield http


def is_ready(http: httpx.Client) -> bool:
    return http.get("/health/ready").status_code == 200


def chat(http: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    return http.post("/v1/chat/completions", json=body)


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_a_server_says_how_far_it_is_while_it_loads() -> None:
    opener = ScriptedOpener(late={"b", "unexported"}, unknown={"unexported"})
    with served(make_fleet(opener, spec_of("a"), spec_of("b"), spec_of("unexported"))) as http:
        assert opener.entered.acquire(timeout=PATIENCE_S)
        reply = http.get("/health/ready")
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        body = reply.json()
        assert body["status"] == "loading"
        assert [(one["model"], one["state"]) for one in body["models"]] == [("b", "loading")]
        assert body["models"][0]["seconds"] >= 0
        assert http.get("/health").json()["status"] == "loading"
        assert http.get("/health/live").status_code == 200
        for name in ("b", "unexported", "whatever it will be called"):
            refusal = chat(http, name)
            assert refusal.status_code == 503
            assert refusal.json()["error"]["code"] == "server_unavailable"
            assert int(refusal.headers["retry-after"]) >= 1
        assert said(chat(http, "a")) == "hello from a"  # what is there answers
        states = {one["id"]: one["state"] for one in http.get("/v1/models").json()["data"]}
        assert states == {"a": "ready", "b": "loading"}
        opener.gate.set()
        wait_for(lambda: is_ready(http))
        assert http.get("/health/ready").json() == {"status": "ok"}
        assert said(chat(http, "unexported")) == "hello from unexported"
        assert chat(http, "whatever it will be called").status_code == 404


def test_strangers_learn_only_that_it_loads() -> None:
    opener = ScriptedOpener(late={"a"})
    with served(make_fleet(opener, spec_of("a")), api_key="user") as http:
        assert http.get("/health/ready").json() == {"status": "loading"}
        assert http.get("/health/ready", headers=USER).json()["models"][0]["model"] == "a"
        opener.gate.set()
        wait_for(lambda: is_ready(http))


def test_failed_models_make_it_degraded_and_the_last_one_makes_it_dead() -> None:
    opener = ScriptedOpener()
    fleet = make_fleet(opener, spec_of("a"), spec_of("b"), delays_s=())
    with served(fleet) as http:
        wait_for(lambda: is_ready(http))
        opener.kill("a")
        wait_for(lambda: fleet.states()[0].phase == "failed")
        assert http.get("/health/ready").json()["status"] == "degraded"
        assert http.get("/health/ready").json()["models"][0]["error"] == "the engine has failed (AssertionError)"
        assert is_ready(http)
        assert chat(http, "a").status_code == 503
        assert said(chat(http, "b")) == "hello from b"
        assert value(scrape(http), "model_state", model="a", state="failed") == 1
        opener.kill("b")
        wait_for(lambda: fleet.states()[1].phase == "failed")
        assert not is_ready(http)
        assert http.get("/health/live").status_code == 503
        assert http.post("/admin/models/load", json={"model": "b"}, headers=BOSS).json()["state"] == "ready"
        assert is_ready(http)
        assert http.get("/health/live").status_code == 200


def test_a_key_loads_no_model_that_it_may_not_use(tmp_path: Path) -> None:
    from ortserve.gateway.access.access import Access
    from ortserve.gateway.access.grant import digest_of

    keys = tmp_path / "keys.jsonl"
    fields = {"name": "one", "hash": f"sha256:{digest_of(b'user').hex()}", "models": ["assistant"]}
    keys.write_text(json.dumps(fields) + "\n")
    fleet = make_fleet(
        ScriptedOpener(), spec_of("a", aliases=("assistant",), preload=False), spec_of("b", preload=False)
    )
    with served(fleet, access=Access(admin_key="boss", file=keys)) as http:
        http.headers.update(USER)
        wait_for(lambda: is_ready(http))
        assert chat(http, "b").status_code == 403
        assert said(chat(http, "a")) == "hello from a"
        assert [one["id"] for one in http.get("/v1/models").json()["data"]] == ["a"]
        assert [one["state"] for one in http.get("/admin/models", headers=BOSS).json()["data"]] == ["ready", "unloaded"]


def test_unloading_drops_no_stream() -> None:
    fleet = make_fleet(ScriptedOpener(), spec_of("a"), spec_of("b"))
    with served(fleet) as http:
        wait_for(lambda: is_ready(http))
        service = fleet.states()[0].service
        assert isinstance(service, ModelService)
        driver: Any = service.driver
        driver.pace_s = 0.02
        body = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        replies: list[httpx.Response] = []
        with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)

            def unload() -> None:
                replies.append(http.post("/admin/models/unload", json={"model": "a"}, headers=BOSS))

            unloading = threading.Thread(target=unload)
            unloading.start()
            wait_for(lambda: chat(http, "a").status_code == 503)
            data = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in data)
        assert text == "hello from a"
        assert data[-1]["choices"][0]["finish_reason"] == "stop"
        unloading.join(PATIENCE_S)
        assert (replies[0].status_code, replies[0].json()["state"]) == (200, "unloaded")


def run(http: httpx.Client, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = cli.main(["models", *words, "--url", str(http.base_url), "--admin-key", "boss"])
    output = capsys.readouterr()
    return status, output.out + output.err


def test_models_are_administered_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    opener = ScriptedOpener(broken={"bad"})
    with served(make_fleet(opener, spec_of("a", aliases=("assistant",)), spec_of("b"), memory=ROOM_FOR_TWO)) as http:
        wait_for(lambda: is_ready(http))
        status, text = run(http, capsys, "ls")
        assert status == 0
        assert text.splitlines()[0].split() == (
            ["model", "state", "for", "task", "memory", "requests", "idle", "restarts", "also", "called"]
        )
        assert text.splitlines()[1].split()[:2] == ["a", "ready"]
        assert text.splitlines()[1].endswith("assistant")
        assert "65.25 MiB of 70 MiB are set aside" in text
        assert run(http, capsys, "unload", "b", "--drain", "1") == (0, "b is unloaded, 0 B are set aside for it\n")
        reply = json.loads(run(http, capsys, "load", "--source", "c", "--name", "new", "--alias", "fresh", "--json")[1])
        assert (reply["id"], reply["state"], reply["aliases"], reply["pinned"]) == (
            "new",
            "ready",
            ["c", "fresh"],
            False,
        )
        assert run(http, capsys, "swap", "assistant", "d")[0] == 0
        assert said(chat(http, "assistant")) == "hello from d"
        for words, reason in (
            (("load", "nothing"), "does not exist"),
            (("load",), "Give one of 'model'"),
            (("load", "a", "--name", "x"), "it is for a new 'source'"),
            (("load", "--source", "e", "--alias", "fresh"), "two models are called fresh"),
            (("load", "--source", "bad"), "bad is broken: export it again"),
            (("swap", "new", "bad"), "bad is broken"),
            (("unload", "nothing"), "does not exist"),
        ):
            status, text = run(http, capsys, *words)
            assert status == 2, text
            assert reason in text
        assert run(http, capsys, "load", "b", "--no-wait")[0] == 0  # an idle one gives way
        wait_for(lambda: said(chat(http, "b")) == "hello from b")
        http.post("/admin/models/unload", json={"model": "b"}, headers=BOSS)
        assert http.post("/admin/models/load", json={"model": "b"}).status_code == 401


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_text_model(tmp_path_factory.mktemp("synthetic"))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two engines need two cores")
def test_engine_processes_and_encoders_run_beside_each_other(folder: Path, tmp_path: Path) -> None:
    """Each process has a thread, and encoders one: what three cores are divided into."""

    def unused(*_: object) -> Path:
        raise AssertionError("everything is exported")

    cores = share_cores(3, has_engine=True, has_encoders=True, num_processes=2)
    divided = ModelSpec(
        str(folder),
        name="syn",
        options=EngineSettings(engines=2),
        engine=EngineConfig(max_rows=4, kv_memory=2**24, max_context=128),
    )
    encoder = ModelSpec(str(write_encoder(tmp_path / "encoder")), name="enc")
    fleet = Fleet([divided, encoder], Tools(FolderOpener(unused, cores), Restarts()), memory=2**30)
    with served(fleet) as http:
        wait_for(lambda: is_ready(http))
        ask = {"temperature": 0, "max_tokens": 12, "messages": [{"role": "user", "content": "abc"}]}
        assert said(chat(http, "syn", **ask)) == expected(b"abc", 12)
        assert http.post("/v1/embeddings", json={"model": "enc", "input": "one two"}).status_code == 200
        assert [one["worker"] for one in http.get("/health").json()["workers"]] == ["cpu-0", "cpu-1"]
        with pytest.raises(ConfigurationError, match="here are 2 models that generate"):
            fleet.enlist(replace(divided, name="other"))
        with pytest.raises(ConfigurationError, match="here are 2 models that generate"):
            fleet.enlist(replace(divided, name="other", options=EngineSettings()))


def test_an_encoder_does_not_come_beside_engine_processes_that_left_it_no_core(folder: Path, tmp_path: Path) -> None:
    def unused(*_: object) -> Path:
        raise AssertionError("nothing is loaded")

    cores = share_cores(3, has_engine=True, has_encoders=False, num_processes=2)
    divided = ModelSpec(str(folder), name="syn", options=EngineSettings(engines=2))
    encoder = ModelSpec(str(write_encoder(tmp_path)), name="enc", options=EngineSettings(engines=2))

    async def story() -> None:
        fleet = Fleet([divided], Tools(FolderOpener(unused, cores), Restarts()), memory=2**30)
        with pytest.raises(ConfigurationError, match="encoders were left none when the server started"):
            fleet.enlist(encoder)
        other = Fleet([encoder], Tools(FolderOpener(unused, cores), Restarts()), memory=2**30)
        assert other.enlist(replace(encoder, name="second")) == "second", "an encoder has no engines to divide"
        both = Fleet([divided, encoder], Tools(FolderOpener(unused, cores), Restarts()), memory=2**30)
        assert both.enlist(replace(encoder, name="second")) == "second", "encoders share theirs by turns"
        divided_memory, alone = find_prepared(encoder), find_prepared(replace(encoder, options=EngineSettings()))
        assert divided_memory is not None
        assert alone is not None
        assert resident_weights(divided_memory) == resident_weights(alone)

    asyncio.run(story())


def test_an_engine_that_dies_is_replaced_and_says_the_same(folder: Path) -> None:
    def unused(*_: object) -> Path:
        raise AssertionError("everything is exported")

    def die(*_: object) -> None:
        raise AssertionError("a law is broken")

    opener = FolderOpener(unused, share_cores(1, has_engine=True, has_encoders=False))
    spec = ModelSpec(str(folder), name="syn", engine=EngineConfig(max_rows=4, kv_memory=2**24, max_context=128))
    fleet = Fleet([spec], Tools(opener, Restarts((0.0,))), memory=2**30)
    with served(fleet) as http:
        wait_for(lambda: is_ready(http))
        ask = {"temperature": 0, "max_tokens": 12, "messages": [{"role": "user", "content": "abc"}]}
        assert said(chat(http, "syn", **ask)) == expected(b"abc", 12)
        service = fleet.states()[0].service
        assert isinstance(service, ModelService)
        engine: Any = service.driver
        endless = {"ignore_eos": True, "max_tokens": 100}
        gate, step = threading.Event(), engine._engine.step

        def held() -> Any:
            assert gate.wait(PATIENCE_S)
            return step()

        engine._engine.step = held
        replies: list[httpx.Response] = []
        whole = threading.Thread(target=lambda: replies.append(chat(http, "syn", **endless)))
        whole.start()
        body = {"model": "syn", "stream": True, "messages": [{"role": "user", "content": "hi"}], **endless}
        with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            wait_for(lambda: fleet.states()[0].num_users == 2)
            engine._engine.scheduler.plan = die
            gate.set()
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
        error = events[-1]["error"]
        assert error["code"] == "server_unavailable"
        assert error["message"].startswith("This request is lost: the engine has failed (AssertionError)")
        whole.join(PATIENCE_S)
        assert replies[0].status_code == 503
        assert "retry-after" in replies[0].headers
        assert said(chat(http, "syn", **ask)) == expected(b"abc", 12)  # waits for the new engine
        samples = scrape(http)
        assert value(samples, "model_restarts_total", model="syn") == 1
        assert value(samples, "model_state", model="syn", state="ready") == 1


def test_a_hung_engine_is_no_more_asked_and_only_a_new_process_helps() -> None:
    opener = ScriptedOpener()
    with served(make_fleet(opener, spec_of("a"), spec_of("b"))) as http:
        wait_for(lambda: is_ready(http))
        assert http.get("/health/live").status_code == 200
        opener.hang("a")
        wait_for(lambda: http.get("/health/live").status_code == 503)
        assert http.get("/health/live").json() == {"status": "hung"}
        ready = http.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "hung")
        (noted,) = [one for one in ready.json()["models"] if one["model"] == "a"]
        assert noted["state"] == "failed"
        assert noted["error"] == "a step has not ended for 120 s: this process has to be restarted"
        assert chat(http, "a").status_code == 503
        assert said(chat(http, "b")) == "hello from b"  # until the process is gone
        samples = scrape(http)
        assert (value(samples, "engine_hung", model="a"), value(samples, "engine_hung", model="b")) == (1, 0)
        assert value(samples, "model_memory_bytes", model="a") > 0  # which is not free
        loading = http.post("/admin/models/load", json={"model": "a"}, headers=BOSS)
        assert loading.status_code >= 400
        assert "this process has to be restarted" in loading.text
        assert [source for source, _ in opener.opened] == ["a", "b"]  # not opened again
