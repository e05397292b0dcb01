"""`ortserve serve` and `ortserve chat` as processes, on the runtime's synthetic model."""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ortserve.gateway.commands import chat as chat_client
from ortserve.gateway.commands import serve
from ortserve.gateway.configuration.kinds import num_bytes
from ortserve.gateway.options.model import EngineSettings
from ortserve.gateway.options.settings import Settings, resolve
from ortserve.gateway.transport.listener import AddressError
from ortserve.runtime.errors import OrtserveError
from ortserve.runtime.testing import write_synthetic_model
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying
from tests.gateway.synthetic import expected, write_synthetic_text_model
from tests.verified import write_test_report
from tests.waiting import PATIENCE_S, wait_for

# The console script is another part of the project: this is all it does for these verbs.
MAIN = """
import argparse, importlib, sys
from pathlib import Path
verb = importlib.import_module("ortserve.gateway.commands." + sys.argv[1])
parser = argparse.ArgumentParser()
verb.configure(parser)
sys.exit(verb.run(parser.parse_args(sys.argv[2:]), lambda _, model: Path(model or "missing")))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_text_model(tmp_path_factory.mktemp("synthetic"))


@contextmanager
def process(verb: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", MAIN, verb, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def read_greeting(child: subprocess.Popen[str]) -> str:
    """The first line on stdout."""
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], PATIENCE_S)
    assert ready, "nothing was printed"
    return child.stdout.readline()


def test_a_server_greets_answers_logs_and_ends(model: Path) -> None:
    with process(
        "serve", str(model), "--threads", "1", PORT="0", ORTSERVE_SERVED_NAME="syn", ORTSERVE_MAX_ROWS="4"
    ) as child:
        match = re.search(r"served on (http://127\.0\.0\.1:(\d+)/v1)", read_greeting(child))
        assert match is not None
        body = {"model": "syn", "messages": [{"role": "user", "content": "abc"}], "temperature": 0, "max_tokens": 12}
        reply = httpx.post(f"{match[1]}/chat/completions", json=body).json()
        text = expected(b"abc", 12)
        assert reply["choices"][0]["message"]["content"] == text
        streamed = httpx.post(f"{match[1]}/chat/completions", json={**body, "stream": True}).text
        chunks = [json.loads(line[6:]) for line in streamed.split("\n\n") if line.startswith("data: {")]
        assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == text
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, stderr
    lines = [json.loads(line) for line in stderr.splitlines()]
    access = [line for line in lines if line["event"] == "request"]
    assert len(access) == 2
    for line in access:
        assert line["path"] == "/v1/chat/completions"
        assert line["request_id"].startswith("req_")
        assert line["prompt_tokens"] == 3
        assert line["ttft_ms"] <= line["duration_ms"]
    assert "abc" not in stderr
    assert {line["event"] for line in lines} >= {"memory_plan", "ready", "draining"}


@pytest.mark.parametrize("closed", ["stderr", "stdout"])
def test_a_server_outlives_who_reads_what_it_prints(model: Path, tmp_path: Path, closed: str) -> None:
    path = str(tmp_path / "s")
    with process("serve", str(model), "--threads", "1", "--unix", path) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        if closed == "stderr":
            assert json.loads(child.stderr.readline())["event"] == "threads", "before the models are loaded"
            child.stderr.close()
            assert "served" in read_greeting(child)
        else:
            child.stdout.close()
            wait_for(lambda: "greeting_not_written" in child.stderr.readline())  # type: ignore[union-attr]
        body = {"model": "synthetic", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 3}
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://x") as http:
            for _ in range(2):
                assert http.post("/v1/chat/completions", json=body).status_code == 200
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0


def test_the_served_snippet_runs(model: Path) -> None:
    with process("serve", str(model), "--port", "0", "--threads", "1") as child:
        greeting = read_greeting(child)
        assert child.stdout is not None
        lines = []
        while not (line := child.stdout.readline()).startswith("curl"):
            lines.append(line)
        snippet = "".join(lines).replace("Hello!", "abc")
        done = subprocess.run(
            [sys.executable, "-c", snippet], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, greeting + done.stderr
        assert done.stdout


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    folder = write_synthetic_text_model(tmp_path, max_context=200_000)  # to whose end no reply comes
    with process("serve", str(folder), "--port", "0", "--drain", "600", "--max-rows", "1") as child:
        match = re.search(r"http://\S+", read_greeting(child))
        assert match is not None
        assert child.stderr is not None
        body = {
            "model": "synthetic",
            "messages": [{"role": "user", "content": "abc"}],
            "ignore_eos": True,
            "stream": True,
        }
        with httpx.stream("POST", f"{match[0]}/chat/completions", json=body):
            child.send_signal(signal.SIGINT)
            assert any(json.loads(line)["event"] == "draining" for line in child.stderr)
            child.send_signal(signal.SIGTERM)
            assert child.wait(PATIENCE_S) == -signal.SIGTERM


def arguments_of(verb: str, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    {"serve": serve, "chat": chat_client}[verb].configure(parser)
    return parser.parse_args(words)


def settings_of(*words: str) -> Settings:
    return resolve(arguments_of("serve", *words)).settings


def no_model(_: EngineSettings, __: str | None) -> Path:
    raise AssertionError("the port is checked first")


def test_a_taken_port_is_one_line_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressError, match=f"port {port} on 127.0.0.1 is in use: stop the other server or choose"):
            serve.run(arguments_of("serve", "--log-level", "error", "--port", str(port)), no_model)


def test_an_unresolvable_host_is_one_line() -> None:
    with pytest.raises(AddressError, match="cannot resolve"):
        serve.run(arguments_of("serve", "--log-level", "error", "--host", "no such host"), no_model)


def test_a_model_without_tokenizer_is_one_line(tmp_path: Path) -> None:
    write_synthetic_model(tmp_path)
    write_test_report(tmp_path)
    with pytest.raises(OrtserveError, match=r"tokenizer\.json cannot be read") as caught:
        serve.run(arguments_of("serve", "--log-level", "error", str(tmp_path), "--port", "0"), no_model)
    assert "\n" not in str(caught.value)


def test_the_environment_supplies_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("PORT", "81")
    monkeypatch.setenv("MODEL", "m 'n o'")
    monkeypatch.setenv("ORTSERVE_PORT", "82")
    monkeypatch.setenv("ORTSERVE_KV_MEMORY", "1.5GiB")
    monkeypatch.setenv("ORTSERVE_DETERMINISTIC", "1")
    settings = settings_of()
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 82)
    assert [one.entry.model for one in settings.models] == ["m", "n o"]
    assert settings.models[1].engine.kv_memory == 3 * 2**29
    assert settings.models[1].engine.deterministic
    assert settings_of("other", "--port", "9").server.port == 9


@pytest.mark.parametrize("words", [("--port", "x"), ("--port", "70000"), ("--max-rows", "0"), ("--kv-memory", "lots")])
def test_bad_options_are_usage_errors(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments_of("serve", *words)
    assert caught.value.code == 2
    assert words[1] in capsys.readouterr().err


def test_sizes() -> None:
    assert [num_bytes(text) for text in ("7", "2k", "1.5 GB", "1MiB")] == [7, 2000, 1_500_000_000, 2**20]


# Chat


def test_chat_with_a_model_in_the_process(model: Path) -> None:
    words = ("--temperature", "0", "--max-tokens", "5", "--threads", "1", "--log-level", "error")
    with process("chat", str(model), *words) as child:
        stdout, stderr = child.communicate("abc\n\n/reset\nabc\n/quit\nnot read\n", timeout=PATIENCE_S)
    assert child.returncode == 0, stderr
    reply = expected(b"abc", 5)
    assert stdout == f"{reply}\n" * 2, stderr


def test_chat_with_a_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    driver = make_driver(saying("hello \U0001f600"))
    with running(driver) as server:
        monkeypatch.setattr(sys, "stdin", iter_lines("one\n", "two\n", "x" * 600 + "\n", "four\n"))
        arguments = arguments_of("chat", "--url", f"{server.url}/v1/", "--system", "S", "--seed", "3")
        assert chat_client.run(arguments, no_model) == 0
    output = capsys.readouterr()
    assert output.out == "hello \U0001f600\n" * 3
    assert "prompt is too long" in output.err
    assert driver.submitted[-1].sampling.seed == 3
    # system, two turns of each side, and the question after the refused one
    assert len(driver.submitted[-1].prompt) > len(driver.submitted[0].prompt)


def test_chat_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OrtserveError, match="check --url"):
        chat_client.run(arguments_of("chat", "--url", "http://127.0.0.1:9/v1"), no_model)


def test_ctrl_c_stops_the_reply_and_not_the_chat(model: Path) -> None:
    with process("chat", str(model), "--threads", "1") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("abc\n")
        child.stdin.flush()
        ready, _, _ = select.select([child.stdout], [], [], PATIENCE_S)
        assert ready
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate("/quit\n", timeout=PATIENCE_S)
    assert "Traceback" not in stderr
    assert child.returncode == 0, stdout + stderr


def iter_lines(*lines: str) -> object:
    """A stdin that is a pipe."""

    class Pipe:
        def __init__(self) -> None:
            self.lines = iter(lines)

        def isatty(self) -> bool:
            return False

        def readline(self) -> str:
            return next(self.lines, "")

    return Pipe()


def test_a_server_that_leaves_takes_requests_until_the_proxies_know(model: Path) -> None:
    with process("serve", str(model), "--port", "0", "--threads", "1", "--drain-delay", "600") as child:
        match = re.search(r"http://[^/\s]+", read_greeting(child))
        assert match is not None
        body = {"model": "synthetic", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 2}
        with httpx.Client(base_url=match[0], timeout=PATIENCE_S) as http:
            assert "connection" not in http.post("/v1/chat/completions", json=body).headers
            child.send_signal(signal.SIGTERM)
            wait_for(lambda: http.get("/health/ready").status_code == 503)
            assert http.get("/health/live").status_code == 200
            reply = http.post("/v1/chat/completions", json=body)
            assert (reply.status_code, reply.headers["connection"]) == (200, "close")
        child.send_signal(signal.SIGTERM)  # a second one waits for nothing
        assert child.wait(PATIENCE_S) != 0
