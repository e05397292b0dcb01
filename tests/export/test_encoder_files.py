"""What a checkpoint says of itself, the translation for transformers 4, and the environment optimum runs in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ortserve.export.cli import configure_export, run_export
from ortserve.export.encoders.bridge import export_through_optimum
from ortserve.export.encoders.modules import read_classifier, read_modules
from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.optimum import environment
from ortserve.export.optimum.environment import optimum_python, optimum_requirements
from ortserve.export.optimum.transformers4 import readable_copy, translate_config, translate_tokenizer
from ortserve.export.sources.checkpoint import foreign_folder, open_checkpoint
from tests.export.encoder_fixtures import checkpoint_of, copy_checkpoint


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_modules_as_sentence_transformers_saves_them() -> None:
    modules = read_modules(checkpoint_of("xlm-roberta"))
    assert (modules.pooling, modules.num_dense, modules.normalized) == (("weightedmean",), 2, True)
    assert modules.prompts == {"query": "query: ", "document": "passage: "}
    assert (modules.max_length, modules.pad_token_id, modules.default_prompt) == (64, 1, None)
    assert read_modules(checkpoint_of("distilbert")).pooling == ("cls", "max", "mean")


def test_the_older_spelling_of_pooling(tmp_path: Path) -> None:
    folder = copy_checkpoint("bert", tmp_path)
    write(
        folder / "1_Pooling" / "config.json",
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False},
    )
    assert read_modules(folder).pooling == ("cls", "mean")


def test_without_modules_the_mean_is_assumed_and_said(tmp_path: Path) -> None:
    folder = copy_checkpoint("bert", tmp_path)
    (folder / "modules.json").unlink()
    modules = read_modules(folder)
    assert (modules.pooling, modules.normalized) == (("mean",), False)
    assert "no modules.json" in modules.notes[0]


def test_lengths_are_the_least_of_all_that_is_stated(tmp_path: Path) -> None:
    folder = copy_checkpoint("mpnet", tmp_path, max_position_embeddings=40)
    assert read_modules(folder).max_length == 38  # two positions come before the first token's
    write(folder / "sentence_bert_config.json", {"max_seq_length": 20})
    assert read_modules(folder).max_length == 20


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (["Transformer", "Pooling", "LSTM"], "lists Transformer, Pooling, LSTM"),
        (["Transformer", "Normalize", "Pooling"], "lists"),
        (["WordEmbeddings", "Pooling"], "lists"),
        (["Transformer", "Pooling", "Normalize", "Dense"], "normalizes before its last module"),
    ],
)
def test_unknown_modules_are_named(tmp_path: Path, modules: list[str], words: str) -> None:
    folder = copy_checkpoint("bert", tmp_path)
    write(
        folder / "modules.json",
        [
            {"type": f"sentence_transformers.models.{name}", "path": f"{place}_{name}" if place else ""}
            for place, name in enumerate(modules)
        ],
    )
    with pytest.raises(ExportError, match=words):
        read_modules(folder)


def test_unknown_pooling_and_prompts_left_out_are_refused(tmp_path: Path) -> None:
    folder = copy_checkpoint("bert", tmp_path)
    write(folder / "1_Pooling" / "config.json", {"pooling_mode": "attention"})
    with pytest.raises(ExportError, match=r"pooling \['attention'\] is unknown"):
        read_modules(folder)
    write(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    assert read_modules(folder).pooling == ("mean",)
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "find: "}})
    with pytest.raises(ExportError, match="leaves prompts out of its pooling"):
        read_modules(folder)


def test_classifiers(tmp_path: Path) -> None:
    assert read_classifier(checkpoint_of("bert-rerank"))[1] == "Sigmoid"
    assert "sigmoid" in read_classifier(checkpoint_of("bert-rerank"))[0].notes[0]
    assert read_classifier(checkpoint_of("xlm-roberta-rerank"))[1] == "Identity"
    folder = copy_checkpoint("bert-rerank", tmp_path, id2label={"0": "no", "1": "yes"})
    with pytest.raises(ExportError, match="has 2 labels"):
        read_classifier(folder)


def test_what_transformers_4_reads_is_left_alone(tmp_path: Path) -> None:
    folder = copy_checkpoint("bert", tmp_path, dtype=..., torch_dtype="float32")
    assert readable_copy(folder, tmp_path / "copy") == folder
    assert not (tmp_path / "copy").exists()


def test_a_checkpoint_of_transformers_5_is_translated_in_a_copy(tmp_path: Path) -> None:
    folder = copy_checkpoint("bert", tmp_path, dtype="float32", torch_dtype=...)
    write(folder / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"})
    before = (folder / "config.json").read_text()
    copy = readable_copy(folder, tmp_path / "copy")
    assert copy == tmp_path / "copy"
    assert json.loads((copy / "tokenizer_config.json").read_text()) == {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert json.loads((copy / "config.json").read_text())["torch_dtype"] == "float32"
    assert (copy / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (copy / "1_Pooling" / "config.json").exists()
    assert (folder / "config.json").read_text() == before


def test_rotary_settings_in_both_spellings() -> None:
    flat = translate_config({"model_type": "x", "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}})
    assert flat == {"model_type": "x", "rope_theta": 7.0}
    scaled = translate_config({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}})
    assert scaled == {"rope_theta": 7.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    layers = {
        "full_attention": {"rope_type": "default", "rope_theta": 160.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    }
    modern = translate_config({"model_type": "modernbert", "rope_parameters": layers})
    assert modern == {"model_type": "modernbert", "global_rope_theta": 160.0, "local_rope_theta": 10.0}
    with pytest.raises(ExportError, match="by kind of layer"):
        translate_config({"model_type": "other", "rope_parameters": layers})
    with pytest.raises(ExportError, match="scales the rotary positions of full_attention"):
        translate_config({"model_type": "modernbert", "rope_parameters": {"full_attention": {"rope_type": "yarn"}}})
    assert translate_tokenizer({"tokenizer_class": "BertTokenizer"}) == {"tokenizer_class": "BertTokenizer"}


def test_the_environment_is_what_the_extra_says() -> None:
    names = {requirement.partition("==")[0] for requirement in optimum_requirements()}
    assert names == {"optimum", "optimum-onnx", "transformers", "sentence-transformers", "torch", "onnx", "onnxruntime"}
    assert all("==" in requirement for requirement in optimum_requirements())


def test_an_environment_that_cannot_be_made_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "optimum_requirements", lambda: ("no-such-distribution-of-ortserve==1",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ExportError, match=r"pip install 'ortserve\[optimum\]'") as caught:
        optimum_python(tmp_path, progress=False)
    assert "no-such-distribution-of-ortserve" in str(caught.value)
    assert not list(tmp_path.glob("optimum-*/bin"))


def test_a_complete_environment_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "optimum_requirements", lambda: ("no-such-distribution-of-ortserve==1",))
    monkeypatch.setattr(environment, "_make", lambda folder, _, progress: _complete(folder))
    first = optimum_python(tmp_path, progress=False)
    monkeypatch.setattr(environment, "_make", None)
    assert optimum_python(tmp_path, progress=False) == first
    monkeypatch.setattr(environment, "optimum_requirements", lambda: ("pytest==0",))
    with pytest.raises(TypeError):  # another set of pins is another environment
        optimum_python(tmp_path, progress=False)


def _complete(folder: Path) -> None:
    folder.mkdir()
    (folder / environment.COMPLETE).touch()


def test_this_environment_is_used_where_the_extra_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import version

    monkeypatch.setattr(environment, "optimum_requirements", lambda: (f"pytest=={version('pytest')}",))
    assert optimum_python(tmp_path, progress=False) == Path(sys.executable)


def test_what_fails_in_the_other_process_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the worker runs where its libraries are missing."""
    from ortserve.export.optimum import process

    monkeypatch.setattr(process, "optimum_python", lambda *_, **__: Path(sys.executable))
    with pytest.raises(ExportError, match=r"optimum cannot export checkpoint .*ModuleNotFoundError") as caught:
        export_through_optimum(checkpoint_of("bert"), tmp_path, "embeddings", texts=["a"], progress=False)
    assert "\n" not in str(caught.value)


def test_int8_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by how far it comes: the process for optimum is only started with a precision."""
    import argparse

    from ortserve.export.optimum import process

    monkeypatch.setattr(process, "optimum_python", lambda *_, **__: Path(sys.executable))
    parser = argparse.ArgumentParser()
    configure_export(parser)
    words = ["--task", "embeddings", str(checkpoint_of("bert")), str(tmp_path / "out")]
    with pytest.raises(ExportError, match="ModuleNotFoundError"):
        run_export(parser.parse_args(words))


def test_bad_usage(tmp_path: Path) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    configure_export(parser)
    source, out = str(checkpoint_of("bert")), str(tmp_path / "out")
    for words, message in (
        (["--precision", "int4"], "choose fp32 or int8"),
        (["--max-context", "9"], "--max-context is for models that generate"),
        (["--no-verify"], "leave it out"),
        (["--device", "cuda"], "--device is cpu for encoders"),
        (["--kv", "int8"], "--kv is for models that generate"),
        (["--requantize"], "--requantize is for models that generate"),
        (["--reference", "numpy"], "--reference is sentence-transformers for encoders"),
    ):
        with pytest.raises(ExportError, match=message):
            run_export(parser.parse_args(["--task", "embeddings", source, out, *words]))
    with pytest.raises(ExportError, match="neither a checkpoint folder nor a hub id"):
        foreign_folder("/nowhere/at all")


def test_an_encoder_without_the_task_says_which_one() -> None:
    with pytest.raises(ExportError, match="--task embeddings"):
        read_architecture(open_checkpoint(checkpoint_of("bert")))
