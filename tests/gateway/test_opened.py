"""`ortserve serve` with several models: cores divided, names unique, one process for chat and embeddings."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from ortserve.gateway import cli
from tests.gateway.encoders import vector_of, write_encoder
from tests.gateway.synthetic import expected, write_synthetic_text_model
from tests.gateway.test_serve import process, read_greeting
from tests.waiting import PATIENCE_S


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_text_model(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def test_one_server_for_chat_and_embeddings(chat_model: Path, encoder: Path) -> None:
    with process("serve", str(encoder), str(chat_model), "--port", "0", "--served-name", "syn") as child:
        greeting = read_greeting(child)
        match = re.search(r"served on (http://\S+)", greeting)
        assert match is not None
        assert greeting.startswith("syn (")
        assert " and averages (fp32, embeddings, inputs of 64)" in greeting
        url = match[1]
        names = [one["id"] for one in httpx.get(f"{url}/models").json()["data"]]
        assert names == ["syn", "averages"]
        chat = {"model": "syn", "messages": [{"role": "user", "content": "abc"}], "temperature": 0, "max_tokens": 12}
        reply = httpx.post(f"{url}/chat/completions", json=chat).json()
        assert reply["choices"][0]["message"]["content"] == expected(b"abc", 12)
        vectors = httpx.post(f"{url}/embeddings", json={"model": "averages", "input": "one two"}).json()
        np.testing.assert_allclose(vectors["data"][0]["embedding"], vector_of("one two"), atol=1e-6)
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, stderr
    lines = [json.loads(line) for line in stderr.splitlines()]
    access = next(line for line in lines if line.get("path") == "/v1/embeddings")
    assert access["prompt_tokens"] == 4
    assert "one two" not in stderr


@pytest.mark.parametrize("changes", [{}, {"task": "rerank", "num_outputs": 1, "output_name": "scores"}])
def test_an_encoder_s_snippet_runs(tmp_path: Path, changes: dict[str, object]) -> None:
    with process("serve", str(write_encoder(tmp_path, **changes)), "--port", "0", "--threads", "1") as child:
        greeting = read_greeting(child)
        assert child.stdout is not None
        lines = []
        while not (line := child.stdout.readline()).startswith("curl"):
            lines.append(line)
        done = subprocess.run([sys.executable, "-c", "".join(lines)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, greeting + done.stderr
        assert done.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("{chat}", "{chat}"), "two models are called synthetic"),
        (("{encoder}", "{encoder}"), "two models are called averages"),
        (("{chat}", "{encoder}", "--served-name", "averages"), "two models are called averages"),
        (("{chat}", "--model-memory", "1MiB"), "raise --model-memory"),
        (("{chat}", "{encoder}", "--threads", "500", "--encoder-threads", "500"), "exceed"),
        (("{encoder}", "--warm", "x"), "no model here generates"),
        (("{chat}", "{chat}", "--engines", "2"), "divides the cores among processes of one model"),
        (("{chat}", "{encoder}", "--engines", "1000"), "--engines 1000 beside encoders needs a core for each engine"),
        (("{chat}", "{chat}", "--engines", "1"), "gives the cores to a process of one model"),
    ],
)
def test_what_cannot_be_served_together_is_one_line(
    words: tuple[str, ...], reason: str, chat_model: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(chat=chat_model, encoder=encoder) for word in words]
    assert cli.main(["serve", *given, "--port", "0", "--log-level", "error"]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_a_client_that_leaves_ends_the_work(tmp_path: Path) -> None:
    from tests.gateway.leaving import leave_while_encoding

    assert leave_while_encoding(write_encoder(tmp_path)) == (0, 1)
