"""`examples/generate.py` as a script of its own, on the synthetic model and on folders that cannot be served."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ortserve.runtime.request import SamplingParams
from ortserve.runtime.testing import write_synthetic_model
from tests.runtime.synthetic import greedy_tokens
from tests.waiting import PATIENCE_S

SCRIPT = Path(__file__).parents[2] / "examples" / "generate.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("example")
    write_synthetic_model(path)
    return path


def test_it_generates_streams_and_cancels(folder: Path) -> None:
    found = run(folder, "5", "17", "4", "--max-tokens", "6")
    assert (found.returncode, found.stderr) == (0, "")
    model, whole, drawn, cancelled = found.stdout.splitlines()
    assert model.startswith("model: synthetic (16 rows of 256 tokens; ")
    prompt = (5, 17, 4)
    expected = greedy_tokens(prompt, SamplingParams(temperature=0, max_tokens=6))
    assert re.fullmatch(rf"greedy: {' '.join(map(str, expected))} \((length|stop), \d+ ms\)", whole)
    assert re.fullmatch(r"drawn:( \d+ \(-\d+\.\d\d\))+ \((length|stop), first token after \d+ ms\)", drawn)
    three = greedy_tokens(prompt, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    assert cancelled == f"cancelled after: {' '.join(map(str, three))}"


def test_the_same_seed_streams_the_same_tokens(folder: Path) -> None:
    first, second = (run(folder, "5", "17", "4").stdout.splitlines()[2] for _ in range(2))
    assert re.sub(r"after \d+ ms", "", first) == re.sub(r"after \d+ ms", "", second)


@pytest.mark.parametrize(
    ("prompt", "words"), [(("5", "100"), "prompt[1] is 100"), (("1",) * 256, "the prompt has 256 tokens")]
)
def test_a_bad_prompt_is_one_line_and_status_2(folder: Path, prompt: tuple[str, ...], words: str) -> None:
    found = run(folder, *prompt)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert words in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_folder_without_a_model_is_one_line_and_status_2(tmp_path: Path) -> None:
    found = run(tmp_path, "1")
    assert (found.returncode, found.stdout) == (2, "")
    assert "has no manifest.json" in found.stderr
    assert found.stderr.count("\n") == 1
