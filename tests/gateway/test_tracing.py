"""Spans of requests, as an exporter gets them. Without OpenTelemetry's SDK only what holds without it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ortserve.gateway.options.tracing import TracingSettings
from ortserve.gateway.telemetry.tracing import Tracing, open_tracing, trace_of
from ortserve.runtime.errors import ConfigurationError
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying
from tests.gateway.test_chat import body
from tests.waiting import wait_for

PATH = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
ENDPOINT = "http://127.0.0.1:9/v1/traces"


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (TRACEPARENT, TRACE),
        (TRACEPARENT.replace("00-", "cc-", 1) + "-more", TRACE),
        ("", None),
        (TRACEPARENT.upper(), None),
        (TRACEPARENT.replace("00-", "ff-", 1), None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE[1:]}-{PARENT}-01", None),
    ],
)
def test_which_trace_a_header_names(header: str, trace: str | None) -> None:
    assert trace_of(header) == trace


def test_without_the_library_the_start_ends_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracing(TracingSettings()) is None
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(
        ConfigurationError, match=r"--trace-endpoint needs OpenTelemetry .* pip install 'ortserve\[otel\]'"
    ):
        open_tracing(TracingSettings(trace_endpoint=ENDPOINT))


@pytest.fixture(name="exported")
def _exported() -> Iterator[tuple[Tracing, Any]]:
    reason = "OpenTelemetry's SDK is not installed: pip install 'ortserve[otel]'"
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason=reason)
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    yield tracing, exporter
    tracing.close()


def test_a_request_has_spans_of_its_phases_in_the_callers_trace(exported: tuple[Tracing, Any]) -> None:
    tracing, exporter = exported
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    with running(make_driver(saying("secret words")), tracing=tracing) as server:
        for stream in (False, True):
            httpx.post(server.url + PATH, json=body(stream=stream, n=2), headers=headers)
        wait_for(lambda: len(exporter.get_finished_spans()) == 14)
    spans = exporter.get_finished_spans()
    requests = [span for span in spans if span.parent.span_id == int(PARENT, 16)]
    assert [span.name for span in requests] == ["chat scripted"] * 2
    assert {span.context.trace_id for span in spans} == {int(TRACE, 16)}
    for request in requests:
        attributes = request.attributes
        assert attributes["gen_ai.operation.name"] == "chat"
        assert attributes["gen_ai.request.model"] == "scripted"
        assert attributes["http.response.status_code"] == 200
        assert attributes["gen_ai.usage.input_tokens"] > 0
        own = [span for span in spans if span.parent.span_id == request.context.span_id]
        assert sorted(span.name for span in own) == ["decode"] * 2 + ["prefill"] * 2 + ["queue"] * 2
        decodes = [span for span in own if span.name == "decode"]
        assert {span.attributes["ortserve.choice"] for span in decodes} == {0, 1}
        total = sum(span.attributes["ortserve.output_tokens"] for span in decodes)
        assert total == attributes["gen_ai.usage.output_tokens"]
        assert all(span.start_time <= span.end_time for span in (*own, request))
    assert not [value for span in spans for value in span.attributes.values() if "secret" in str(value)]


def test_failures_batches_and_unsampled_requests(exported: tuple[Tracing, Any]) -> None:
    tracing, exporter = exported
    driver = make_driver(saying("x" * 400), pace_s=0.02)
    with running(driver, tracing=tracing) as server, httpx.Client(base_url=server.url) as http:
        http.post(PATH, json=body(), headers={"x-ortserve-timeout": "0.2"})
        http.post(PATH, json={"model": "nothing", "messages": []})
        http.post(PATH, json=body(max_tokens=1), headers={"traceparent": TRACEPARENT[:-1] + "0"})
        http.get("/v1/models")
        driver.script = saying("hi")
        row = {"custom_id": "1", "method": "POST", "url": "/v1/completions"}
        data = json.dumps({**row, "body": {"model": "scripted", "prompt": "x"}}).encode()
        file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": data}).json()["id"]
        http.post(
            "/v1/batches",
            json={"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"},
        )
        wait_for(lambda: any(span.name.startswith("text") for span in exporter.get_finished_spans()))
    late, wrong, batch = (span for span in exporter.get_finished_spans() if span.parent is None)
    assert (late.attributes["error.type"], late.attributes["ortserve.outcome"]) == ("deadline_exceeded", "late")
    assert late.status.is_ok is False
    assert wrong.attributes["http.response.status_code"] in (400, 404)
    assert wrong.status.is_ok
    assert (batch.name, batch.attributes["http.route"]) == ("text_completion scripted", "/v1/completions")


def test_spans_are_sent_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    otlp = pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        reason="OpenTelemetry's exporter is not installed: pip install 'ortserve[otel]'",
    )
    sent: list[Any] = []
    monkeypatch.setattr(otlp.OTLPSpanExporter, "export", lambda self, spans: sent.extend(spans))
    tracing = open_tracing(TracingSettings(trace_endpoint=ENDPOINT))
    assert tracing is not None
    with running(make_driver(saying("hi")), tracing=tracing) as server:
        httpx.post(server.url + PATH, json=body())
    tracing.close()
    assert sorted(span.name for span in sent) == ["chat scripted", "decode", "prefill", "queue"]
    assert sent[0].resource.attributes["service.name"] == "ortserve"
