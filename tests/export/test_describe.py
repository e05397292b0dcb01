"""The manifest says about tokens and sampling what the checkpoint's files say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ortserve.export.errors import ExportError
from ortserve.export.publish import export_checkpoint
from ortserve.runtime.manifest import GenerationDefaults, Manifest, read_manifest
from tests.export.checkpoints import Tiny, write_checkpoint, write_json, write_tokenizer

WORDS = ["<s>", "</s>", "<end>", *"abcdefghijklmnopqrstuvwxyz"]


def _manifest(
    folder: Path,
    *,
    tokenizer: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Manifest:
    source = write_checkpoint(folder / "source", Tiny(config=config or {}))
    write_tokenizer(source, WORDS, tokenizer)
    if generation is not None:
        write_json(source / "generation_config.json", generation)
    export_checkpoint(source, folder / "out", precision="int8", verify=False)
    return read_manifest(folder / "out")


def test_end_tokens_are_merged_from_all_three_files(tmp_path: Path) -> None:
    manifest = _manifest(
        tmp_path,
        tokenizer={"eos_token": {"content": "<end>"}},
        generation={"eos_token_id": [1, 5, 999]},  # 999 is no id of this model
        config={"eos_token_id": 7},
    )
    assert manifest.eos_token_ids == (1, 2, 5, 7)


def test_no_end_token_anywhere_is_an_empty_tuple(tmp_path: Path) -> None:
    assert _manifest(tmp_path).eos_token_ids == ()


def test_ids_beyond_the_tokenizer_are_padding(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path)
    assert manifest.num_tokens == len(WORDS)
    assert manifest.vocab_size == Tiny().vocab_size


def test_sampling_defaults_come_from_generation_config(tmp_path: Path) -> None:
    generation = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1, "do_sample": True}
    assert _manifest(tmp_path, generation=generation).generation == GenerationDefaults(0.7, 0.8, 20, 1.1)


@pytest.mark.parametrize(
    "generation",
    [None, {}, {"temperature": "hot"}, {"top_p": 7, "top_k": 1.5}, {"temperature": float("inf"), "top_k": -1}],
)
def test_without_usable_sampling_values_nothing_is_stated(tmp_path: Path, generation: dict[str, Any] | None) -> None:
    assert _manifest(tmp_path, generation=generation).generation == GenerationDefaults()


def test_a_model_whose_author_does_not_sample_is_greedy(tmp_path: Path) -> None:
    generation = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    assert _manifest(tmp_path, generation=generation).generation == GenerationDefaults(temperature=0.0)


@pytest.mark.parametrize(
    ("tokenizer", "config", "bos", "add"),
    [
        ({"bos_token": "<s>", "add_bos_token": True}, {}, 0, True),
        ({"bos_token": "<s>", "add_bos_token": False}, {}, 0, False),
        ({"bos_token": "<s>", "tokenizer_class": "LlamaTokenizerFast"}, {}, 0, True),
        ({"bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}, {}, 0, False),
        ({"bos_token": None, "add_bos_token": True}, {"bos_token_id": 0}, None, False),
        ({}, {"bos_token_id": 0}, 0, False),
    ],
)
def test_the_first_token_rule(
    tmp_path: Path, tokenizer: dict[str, Any], config: dict[str, Any], bos: int | None, add: bool
) -> None:
    manifest = _manifest(tmp_path, tokenizer=tokenizer, config=config)
    assert (manifest.bos_token_id, manifest.add_bos) == (bos, add)


def test_a_first_token_that_the_tokenizer_adds_itself_is_not_added_again(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    source = write_checkpoint(tmp_path / "source")
    write_tokenizer(source, WORDS, {"bos_token": "<s>", "add_bos_token": True})
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(source / "tokenizer.json"))
    manifest = export_checkpoint(source, tmp_path / "out", precision="int8")
    assert (manifest.bos_token_id, manifest.add_bos) == (0, False)


def test_the_tokenizer_travels_with_the_model_and_names_no_place(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, tokenizer={"eos_token": "</s>"})
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / "tokenizer_config.json").exists()
    assert manifest.source == "source"
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert "onnxruntime" in manifest.exporter


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny(vocab_size=20))
    write_tokenizer(source, WORDS)
    with pytest.raises(ExportError, match="knows 29 ids, the embedding has 20 rows"):
        export_checkpoint(source, tmp_path / "out", precision="int8")
    assert not (tmp_path / "out").exists()
