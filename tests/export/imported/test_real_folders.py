"""What onnxruntime-genai and optimum themselves wrote (`make_folders`) is proved and served."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from ortserve import runtime
from ortserve.export.errors import UnreadableError
from ortserve.export.imported.publish import import_folder, itself
from ortserve.export.open_source import open_source
from ortserve.export.proof import references
from ortserve.export.proof.padded_run import open_session
from ortserve.export.verifying import verify_folder
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.report import read_report
from tests.export.command_line import run_verb

HERE = Path(__file__).parent


def test_a_genai_folder_is_proved_against_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "qwen2"
    shutil.copytree(HERE / "qwen2-genai", folder)
    with open_source(HERE / "qwen2-source") as source:
        report = import_folder(folder, source=source)
        assert report.verified, report.findings
        assert report.source == "qwen2-source"
        again = verify_folder(folder, source)
        assert again.parity is not None
        assert again.verified
    manifest = read_manifest(folder)
    assert (manifest.precision, manifest.kv.num_kv_heads, manifest.kv.head_dim) == ("int4", 1, 16)
    assert manifest.padded is not None
    assert manifest.padded.attention == "grouped"
    assert manifest.num_parameters > 18_000


def test_a_genai_folder_of_another_checkpoint_fails_the_proof(tmp_path: Path) -> None:
    """Some of its codes are others: what a damaged download, or another version of the model, looks like."""
    folder = tmp_path / "qwen2"
    shutil.copytree(HERE / "qwen2-genai", folder)
    data = np.fromfile(folder / "model.onnx.data", np.uint8)
    data[:4096] ^= 0x11
    data.tofile(folder / "model.onnx.data")
    with open_source(HERE / "qwen2-source") as source:
        report = import_folder(folder, source=source)
    assert not report.verified
    assert any(finding.startswith("mean KL") for finding in report.findings)


def _folder_and_source(below: Path) -> tuple[Path, Path]:
    """A GPT-2, which has no builder here, as optimum exported it; and its checkpoint, whose weights the graph names."""
    folder, source = below / "gpt2", below / "gpt2-source"
    shutil.copytree(HERE / "gpt2-optimum", folder)
    source.mkdir()
    shutil.copyfile(folder / "config.json", source / "config.json")
    weights = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(folder / "model.onnx").graph.initializer
    }
    named = {name: value for name, value in weights.items() if name.startswith("transformer.")}
    save_file(named, source / "model.safetensors", metadata={"format": "pt"})
    return folder, source


def test_without_transformers_a_model_without_a_builder_stays_unverified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(references, "find_spec", lambda _: None)
    folder, path = _folder_and_source(tmp_path)
    assert run_verb("import", folder, "--source", path) == 0
    assert "torch and transformers not installed: pip install 'ortserve[reference]'" in capsys.readouterr().out
    report = read_report(folder)
    assert not report.verified
    assert report.findings[0].startswith("gpt2-source has no builder here, so its reference is transformers' own")
    assert (report.source, bool(report.source_digest)) == ("gpt2-source", True)
    with pytest.raises(UnreadableError, match="not installed"):
        run_verb("verify", folder, "--against", path)
    assert read_report(folder) == report


def test_transformers_proves_what_has_no_builder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder, path = _folder_and_source(tmp_path)
    with open_source(path) as source:
        report = import_folder(folder, source=source)
    assert report.verified, report.findings
    assert report.parity is not None
    assert report.parity.reference.startswith("transformers ")
    assert {"torch", "transformers"} <= set(report.versions)
    assert run_verb("verify", folder, "--against", path) == 0
    weights = load_file(path / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.bias"] = weights["transformer.h.1.mlp.c_fc.bias"] + np.float32(0.05)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert run_verb("verify", folder, "--against", path) == 1
    assert not read_report(folder).verified


@pytest.mark.parametrize("name", ["gpt2-optimum", "qwen2-genai"])
def test_replies_are_those_of_the_graph_alone_batched_and_cached(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    shutil.copytree(HERE / name, folder)
    assert all(check.passed for check in import_folder(folder).checks)
    manifest = read_manifest(folder)
    shared = [(7 * place) % 60 for place in range(70)]
    prompts = [shared, [5, 9, 11], [3], [*shared[:66], 1, 2]]
    sampling = runtime.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with runtime.open(str(folder), runtime.EngineConfig(max_rows=4, max_chunk_tokens=16)) as model:
        alone = [list(model.generate(prompt, sampling).token_ids) for prompt in prompts]
        streams = [model.stream(prompt, sampling) for prompt in prompts]
        batched = [[token for delta in stream for token in delta.token_ids] for stream in streams]
    assert batched == alone  # the second time with the prompt cache
    texts = [[*prompt, *reply] for prompt, reply in zip(prompts, alone, strict=True)]
    logits = itself(manifest, open_session(folder / manifest.graph)).compute(texts, None)
    for prompt, reply, rows in zip(prompts, alone, logits, strict=True):
        assert reply == rows[len(prompt) - 1 : -1, : manifest.num_tokens].argmax(axis=1).tolist()
