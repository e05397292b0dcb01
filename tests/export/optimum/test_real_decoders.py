"""Small random decoders without a builder here through optimum itself, served and asked. Run by `make optimum`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from ortserve.export.families import READERS
from ortserve.export.optimum.environment import default_environments, optimum_python
from ortserve.export.sources.json_fields import read_json
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.report import read_report
from tests.export.test_real_encoder import ortserve, served

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("ORTSERVE_TEST_OPTIMUM"), reason="needs optimum's environment (1.7 GB): run make optimum"
    ),
    pytest.mark.timeout(1800),
]
FAMILIES = ("gpt2", "opt", "gpt_neox")
ROOT = Path(__file__).parents[3]
# What optimum's own class computes greedily of the folder that we made: it reads config.json and model.onnx alone.
GENERATE = """
import sys, torch
from optimum.onnxruntime import ORTModelForCausalLM
model = ORTModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True)
ids = torch.tensor([[int(word) for word in sys.argv[2:]]])
mask = torch.ones_like(ids)
kept = dict(do_sample=False, min_new_tokens=8, max_new_tokens=8, pad_token_id=0)
print(*model.generate(ids, attention_mask=mask, **kept)[0, ids.shape[1]:].tolist())
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoders")
    run_there("-m", "tests.export.optimum.make_decoders", str(folder), *FAMILIES)
    return folder


def run_there(*words: str) -> str:
    python = optimum_python(default_environments(), progress=True)
    done = subprocess.run([str(python), *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_export_prove_serve_and_ask(checkpoints: Path, family: str, tmp_path: Path) -> None:
    source, folder = checkpoints / family, tmp_path / "model"
    assert not set(read_json(source / "config.json")["architectures"]) & set(READERS)
    refused = ortserve("export", str(source), str(folder))
    assert refused.returncode == 2
    assert refused.stderr.rstrip().endswith("with --via optimum")
    done = ortserve("export", str(source), str(folder), "--via", "optimum")
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert ortserve("verify", str(folder), "--against", str(source)).returncode == 0
    report = read_report(folder)
    assert report.verified
    assert read_manifest(folder).kv.kind == "padded"
    with served(str(folder)) as url:
        prompts = ["A few words", "of", "unequal lengths, asked at once, and beside each other"]
        alone = [ask(url, [prompt]) for prompt in prompts]
        assert ask(url, prompts) == [text for (text,) in alone]


def ask(url: str, prompts: Sequence[str]) -> list[str]:
    """Greedy replies, asked for at the same time."""
    client = openai.OpenAI(base_url=url, api_key="any")
    name = client.models.list().data[0].id

    def reply(prompt: str) -> str:
        answer = client.completions.create(model=name, prompt=prompt, max_tokens=8, temperature=0)
        return answer.choices[0].text

    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(reply, prompts))


def test_the_folder_loads_in_optimum(checkpoints: Path, tmp_path: Path) -> None:
    from ortserve import runtime

    folder = tmp_path / "model"
    assert ortserve("export", str(checkpoints / "gpt2"), str(folder), "--via", "optimum").returncode == 0
    prompt = [5, 9, 11, 40]
    theirs = [int(word) for word in run_there("-c", GENERATE, str(folder), *map(str, prompt)).split()]
    sampling = runtime.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with runtime.open(str(folder)) as model:
        assert list(model.generate(prompt, sampling).token_ids) == theirs
