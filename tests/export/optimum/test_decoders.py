"""What `--via optimum` does around optimum, whose place a stub takes; `make optimum` runs optimum itself."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ortserve import runtime
from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.open_source import open_source
from ortserve.export.optimum import environment, process
from ortserve.export.optimum.process import WORKER
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.report import find_doubts, read_report
from tests.export.checkpoints import write_json
from tests.export.command_line import run_verb
from tests.export.optimum import stub_worker
from tests.export.optimum.stub_worker import GPT2

OWN = ("tokenizer.json", "tokenizer_config.json")


def write_source(folder: Path, *, tokenizer: bool = True, **fields: object) -> Path:
    """A GPT-2 checkpoint as far as our process looks at it."""
    folder.mkdir(parents=True)
    config = json.loads((GPT2 / "config.json").read_text())
    write_json(folder / "config.json", {**config, **fields})
    save_file({"transformer.wte.weight": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
    for name in OWN if tokenizer else ():
        shutil.copyfile(GPT2 / name, folder / name)
    if tokenizer:  # told from what optimum writes
        fields = json.loads((folder / "tokenizer_config.json").read_text())
        write_json(folder / "tokenizer_config.json", {**fields, "padding_side": "left"})
    return folder


@pytest.fixture
def _stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "optimum_python", lambda *_, **__: Path(sys.executable))
    monkeypatch.setattr(process, "_run", stub_worker.run)


@pytest.mark.usefixtures("_stubbed")
def test_a_decoder_is_exported_proved_and_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = write_source(tmp_path / "small-gpt2"), tmp_path / "out"
    assert run_verb("export", source, folder, "--via", "optimum", "--max-context", "64") == 0
    printed = capsys.readouterr().out
    manifest, report = read_manifest(folder), read_report(folder)
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.onnx",
        "report.json",
        *OWN,
    }
    assert (manifest.name, manifest.source, manifest.family) == ("small-gpt2", "small-gpt2", "gpt2")
    assert (manifest.kv.kind, manifest.precision, manifest.imported, manifest.max_context) == (
        "padded",
        "fp32",
        False,
        64,
    )
    assert manifest.path.startswith(
        "exported by optimum 2.1.0, because ortserve has no builder for GPT2LMHeadModel: run in padded batches"
    )
    assert report.verified
    assert report.path == manifest.path
    assert report.parity is not None
    assert report.parity.reference.startswith("transformers 4.57.6 on torch 2.13.0 in optimum's environment")
    assert report.optimum_versions["optimum"] == "2.1.0"
    assert (report.versions["onnx"], report.optimum_versions["onnx"]) == (
        version("onnx"),
        stub_worker.LIBRARIES["onnx"],
    )
    assert "optimum" not in report.versions
    assert report.source_digest
    for text in (printed, (folder / "README.md").read_text()):
        assert manifest.path in text
        assert "optimum-onnx 0.1.0" in text
    assert all((folder / name).read_bytes() == (source / name).read_bytes() for name in OWN)
    assert find_doubts(folder, digest=manifest.digest, thorough=True) == []
    sampling = runtime.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with runtime.open(str(folder), runtime.EngineConfig(max_rows=2)) as model:
        assert len(model.generate([5, 9, 11], sampling).token_ids) == 4
    assert run_verb("verify", folder, "--against", source) == 0
    write_json(source / "config.json", {**json.loads((source / "config.json").read_text()), "stub": "position"})
    assert run_verb("verify", folder, "--against", source) == 1
    assert not read_report(folder).verified
    write_json(source / "config.json", {**json.loads((source / "config.json").read_text()), "stub": "vocabulary"})
    with pytest.raises(ExportError, match="was not exported from this checkpoint: it gives 64 logits, the checkpoint"):
        run_verb("verify", folder, "--against", source)
    with pytest.raises(ExportError, match="leave out --adapter and --reference"):
        run_verb("verify", folder, "--against", source, "--reference", "numpy")


@pytest.mark.usefixtures("_stubbed")
def test_a_graph_that_is_not_the_checkpoints_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = write_source(tmp_path / "gpt2", stub="position", tokenizer=False), tmp_path / "out"
    assert run_verb("export", source, folder, "--via", "optimum") == 1
    captured = capsys.readouterr()
    assert "UNVERIFIED: mean KL at prefill" in captured.out
    assert not read_report(folder).verified
    assert (folder / "tokenizer.json").read_bytes() == (GPT2 / "tokenizer.json").read_bytes()  # optimum's own


@pytest.mark.usefixtures("_stubbed")
def test_without_a_proof_the_folder_is_unverified(tmp_path: Path) -> None:
    source = write_source(tmp_path / "llama", architectures=["LlamaForCausalLM"])
    assert run_verb("export", source, tmp_path / "out", "--via", "optimum", "--no-verify") == 0
    report = read_report(tmp_path / "out")
    assert not report.verified
    assert "because --via optimum asked for it, although ortserve builds LlamaForCausalLM itself" in report.path


@pytest.mark.usefixtures("_stubbed")
def test_what_optimum_cannot_export_leaves_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path / "gpt2", stub="fails")
    with pytest.raises(ExportError, match=r"optimum cannot export gpt2 \(ValueError: no ONNX configuration"):
        run_verb("export", source, tmp_path / "out", "--via", "optimum")
    (source / "chat_template.jinja").write_text("{% if x %}")
    with pytest.raises(ExportError, match="does not compile"):
        run_verb("export", source, tmp_path / "out", "--via", "optimum")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2"]


def test_a_missing_environment_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, requirements: tuple[str, ...], *, progress: bool) -> None:
        raise ExportError(f"{folder.name} cannot be made: {environment.remedy()}")

    monkeypatch.setattr(environment, "optimum_requirements", lambda: ("no-such-distribution-of-ortserve==1",))
    monkeypatch.setattr(environment, "_make", fail)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ExportError, match=r"pip install 'ortserve\[optimum\]'"):
        run_verb("export", write_source(tmp_path / "gpt2"), tmp_path / "out", "--via", "optimum")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "int8"], "--precision is fp32 where --via optimum exports"),
        (["--device", "cuda"], "--device is cpu where --via optimum exports"),
        (["--dry-run"], "optimum has no plan to show"),
        (["--reference", "numpy"], "--reference is transformers where --via optimum exports"),
        (["--adapter", "x"], "--adapter is for graphs built here"),
        (["--block-size", "32"], "--block-size is for graphs built here"),
        (["--calibration", "x"], "--calibration is for graphs built here"),
        (["--activations", "token"], "--activations is for graphs built here"),
        (["--kv", "int8"], "--kv is for graphs built here"),
        (["--requantize"], "--requantize is for graphs built here"),
        (["--task", "embeddings"], "encoders always go through optimum"),
        (["--name", "x"], "--name is for encoders"),
    ],
)
def test_bad_usage(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        run_verb("export", tmp_path, tmp_path / "out", "--via", "optimum", *words)


def test_sources_that_are_not_taken(tmp_path: Path) -> None:
    quantized = write_source(tmp_path / "awq", quantization_config={"quant_method": "awq"})
    for source, message in (
        ("model.gguf", "is a GGUF file, which --via optimum does not take"),
        (quantized, "awq is quantized, which --via optimum does not take"),
        ("/nowhere/at all", "neither a checkpoint folder nor a hub id"),
    ):
        with pytest.raises(ExportError, match=message):
            run_verb("export", source, tmp_path / "out", "--via", "optimum")


def test_an_architecture_without_a_builder_names_the_way(tmp_path: Path) -> None:
    with (
        open_source(write_source(tmp_path / "gpt2")) as checkpoint,
        pytest.raises(ExportError, match=r"GPT2LMHeadModel is not supported: .* with --via optimum$"),
    ):
        read_architecture(checkpoint)


def test_the_worker_needs_nothing_of_ours() -> None:
    assert "from ortserve" not in WORKER.read_text()
