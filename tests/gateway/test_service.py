"""What a model's manifest and a server's options decide: defaults, names, prompts, the state shown to balancers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import httpx
import pytest

from ortserve.gateway.errors import ApiError
from ortserve.gateway.logs import configure_logs
from ortserve.gateway.prompts.prompt import INLINE_BYTES
from ortserve.gateway.request_fields.completions import COMPLETIONS
from ortserve.gateway.schema.completions import read_completion
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.sampling import SamplingDefaults
from ortserve.gateway.served.defaults import sampling_defaults
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.errors import OverloadedError
from ortserve.runtime.manifest import GenerationDefaults
from ortserve.runtime.request import Request
from tests.gateway.running import running
from tests.gateway.scripted import MAX_CONTEXT, Held, ScriptedDriver, make_driver, make_manifest, make_service, saying
from tests.gateway.test_chat import body
from tests.waiting import wait_for


def test_defaults_of_the_model_or_of_openai() -> None:
    manifest = make_manifest(10, eos=1)
    assert sampling_defaults(manifest, "model") == SamplingDefaults()
    stated = replace(manifest, generation=GenerationDefaults(temperature=0.6, top_p=0.9, top_k=20))
    assert sampling_defaults(stated, "model") == SamplingDefaults(0.6, 0.9, 20, 1.0)
    assert sampling_defaults(stated, "openai") == SamplingDefaults()


def read_prompts(service: ModelService, **fields: object) -> list[tuple[int, ...]]:
    data = {"model": "scripted", **fields}
    assert not COMPLETIONS.unheeded(data).unknown
    request = read_completion(Fields(data), service.defaults, service.vocabulary)
    return [prompt.ids for prompt in asyncio.run(service.read_prompts(request))]


def served(driver: ScriptedDriver) -> ModelService:
    """A service used for reading prompts only."""

    async def make() -> ModelService:
        return make_service(driver)

    return asyncio.run(make())


def test_many_short_prompts_are_prepared_together() -> None:
    driver = make_driver(saying("x"))
    service = served(driver)
    prompts: list[object] = [f"hello {index}" for index in range(400)]
    assert sum(len(str(prompt)) for prompt in prompts) > INLINE_BYTES
    prompts[7] = [5, 6]
    ids = read_prompts(service, prompt=prompts)
    assert ids[7] == (5, 6)
    assert ids[8] == service.tokenizer.encode("hello 8", add_special_tokens=True)
    with pytest.raises(ApiError, match="context length"):
        read_prompts(service, prompt=["ok", "x" * MAX_CONTEXT])
    service.pool.close()
    driver.close()


def test_a_refused_choice_cancels_those_before_it() -> None:
    class Filling(ScriptedDriver):
        def submit(self, request: Request, outlet: object) -> None:
            if len(self.submitted) == 2:
                self.refusal = OverloadedError("full", retry_after_s=1)
            super().submit(request, outlet)  # type: ignore[arg-type]

    plain = make_driver(Held("x"))
    plain.close()
    driver = Filling(plain.manifest, plain.script)
    with running(driver) as server:
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body(n=3))
        assert response.status_code == 429
        assert len(driver.cancelled) == 2


def test_health_says_when_the_engine_has_stopped() -> None:
    driver = make_driver(saying("x"))
    with running(driver) as server:
        driver.close()
        response = httpx.get(f"{server.url}/health")
        assert response.status_code == 503
        assert response.json()["status"] == "unavailable"
        assert response.headers["retry-after"]
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=body())
    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "server_error"


def test_access_lines(capsys: pytest.CaptureFixture[str]) -> None:
    driver = make_driver(Held("x" * 50, 1))
    configure_logs("info")
    try:
        with running(driver) as server:
            httpx.get(f"{server.url}/nope")
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body(stream=True)) as response:
                next(response.iter_lines())
            wait_for(lambda: driver.cancelled)
    finally:
        configure_logs("error")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    missing, left = (line for line in lines if line["event"] == "request")
    assert (missing["method"], missing["path"], missing["status"], missing["outcome"]) == ("GET", "/nope", 404, "done")
    assert (left["status"], left["outcome"]) == (200, "disconnected")
    assert left["request_id"] == response.headers["x-request-id"]
    assert left["completion_tokens"] < 50
