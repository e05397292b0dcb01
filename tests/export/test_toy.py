"""Random checkpoints: the same bytes by seed, sane activations through depth, and a tokenizer that serves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes.plan import plan_export
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.export.toys.shapes import SHAPES, find_shape, llama_config
from ortserve.export.toys.toy import write_toy_checkpoint
from ortserve.export.toys.toy_tokenizer import byte_characters, write_toy_tokenizer
from tests.export.proofs import proof_of

TINY = SHAPES["tiny"]
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_toy_checkpoint(TINY, tmp_path / name, seed=seed)
    first, same, other = (_contents(tmp_path / name) for name in "abc")
    assert sorted(first) == sorted(FILES)
    assert first == same
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_weights_of_a_tensor_depend_on_its_name_only(tmp_path: Path) -> None:
    """So that a shape with more layers has the same first ones."""
    write_toy_checkpoint(TINY, tmp_path / "two")
    write_toy_checkpoint(replace(TINY, num_layers=3), tmp_path / "three")
    name = "model.layers.0.self_attn.q_proj.weight"
    two, three = (open_checkpoint(tmp_path / folder).read(name) for folder in ("two", "three"))
    np.testing.assert_array_equal(two, three)


@pytest.mark.parametrize("num_layers", [1, 24])
def test_activations_stay_sane_through_depth(tmp_path: Path, num_layers: int) -> None:
    write_toy_checkpoint(replace(TINY, num_layers=num_layers), tmp_path / "toy")
    checkpoint = open_checkpoint(tmp_path / "toy")
    (logits,) = reference_logits(checkpoint, read_architecture(checkpoint), [list(range(40))])
    assert np.isfinite(logits).all()
    assert 1.5 < logits.std() < 6
    assert len(set(logits.argmax(axis=1))) > 10  # neither one token forever


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_it_can_be_proved_in_every_precision(tmp_path: Path, precision: str) -> None:
    write_toy_checkpoint(replace(TINY, num_layers=6), tmp_path / "toy")
    manifest = export_checkpoint(tmp_path / "toy", tmp_path / "out", precision=precision, block_size=None)
    assert proof_of(tmp_path / "out").passed
    assert (manifest.num_tokens, manifest.vocab_size) == (TINY.num_tokens, TINY.vocab_size)
    assert manifest.eos_token_ids == (TINY.num_tokens - 3, TINY.num_tokens - 1)


@pytest.mark.parametrize(("name", "num_parameters"), [("qwen2.5-0.5b", 494_005_120), ("llama-3.2-1b", 1_235_814_400)])
def test_real_shapes_have_the_real_number_of_parameters(name: str, num_parameters: int) -> None:
    shape = find_shape(name)
    assert shape.num_parameters == num_parameters
    assert llama_config(shape, eos_token_id=1)["vocab_size"] == shape.vocab_size


def test_the_shapes_parameters_are_the_plans(tmp_path: Path) -> None:
    write_toy_checkpoint(TINY, tmp_path / "toy")
    plan = plan_export(read_architecture(open_checkpoint(tmp_path / "toy")), precision="int8")
    assert plan.num_parameters == TINY.num_parameters
    with pytest.raises(ExportError, match=r"shape 'huge' is unknown: choose qwen2.5-0.5b, .*tiny"):
        find_shape("huge")


def test_its_tokenizer_survives_any_text_and_decodes_every_id(tmp_path: Path) -> None:
    ends = write_toy_tokenizer(tmp_path, num_tokens=1000)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "naïve 你好\n\t🙂 <|im_end|>"
    ids = tokenizer.encode(text).ids
    assert ids[-1] == ends[1]
    assert len(ids) == len(text.removesuffix("<|im_end|>").encode()) + 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    texts = [tokenizer.decode([index], skip_special_tokens=False) for index in range(256, 1000)]
    assert len(set(texts)) == len(texts)
    assert all(part.isprintable() and part for part in texts)
    assert tokenizer.get_vocab_size() == 1000
    assert len(set(byte_characters())) == 256


def test_a_tokenizer_without_room_for_bytes_is_refused(tmp_path: Path) -> None:
    write_toy_tokenizer(tmp_path, num_tokens=259)
    with pytest.raises(ExportError, match="needs at least 259 tokens, not 258"):
        write_toy_tokenizer(tmp_path, num_tokens=258)


def test_its_chat_template_renders(tmp_path: Path) -> None:
    write_toy_tokenizer(tmp_path, num_tokens=300)
    template = json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "there"}]},
    ]
    rendered = ImmutableSandboxedEnvironment().from_string(template).render(
        messages=messages, add_generation_prompt=True
    )  # fmt: skip
    assert rendered == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
        "<|im_start|>user\nthere<|im_end|>\n<|im_start|>assistant\n"
    )
