"""Every unusable checkpoint, option or destination is one line naming cause and remedy, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ortserve.export.errors import ExportError, UnprovenError
from ortserve.export.publish import export_checkpoint
from ortserve.runtime.report import is_verified
from tests.export.checkpoints import Tiny, write_checkpoint, write_json


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _drop_tensor(folder: Path) -> None:
    tensors = Tiny().tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def _wrong_shape(folder: Path) -> None:
    tensors = Tiny().tensors()
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((8, 32), np.float32)
    save_file(tensors, folder / "model.safetensors")


def _not_a_number(folder: Path) -> None:
    tensors = Tiny().tensors()
    tensors["model.layers.0.mlp.down_proj.weight"][3, 3] = np.nan
    save_file(tensors, folder / "model.safetensors")


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "config.json", {**Tiny().config_json(), **fields})


def _text(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"model.safetensors is truncated: .* download it again"),
        (_remove("model.safetensors"), "has no model.safetensors or model.safetensors.index.json"),
        (_remove("config.json"), "has no config.json: name the folder of a Hugging Face checkpoint"),
        (_drop_tensor, "has no tensor model.layers.1.mlp.up_proj.weight: a shard is missing"),
        (_wrong_shape, r"k_proj.weight has shape \[8, 32\], config.json implies \[32, 32\]"),
        (_not_a_number, "down_proj.weight holds values that are not finite: download"),
        (_text("config.json", "{"), "config.json is not valid JSON"),
        (_text("config.json", "[]"), "config.json holds a list, expected a JSON object"),
        (_text("tokenizer.json", "{}"), "tokenizer.json is no readable tokenizer"),
        (
            _text("chat_template.jinja", "{% if x %}"),
            r"template in chat_template.jinja does not compile \(line 1: Unexp",
        ),
        (_text("chat_template.jinja", "a\n{{ x | unheard }}"), "does not compile .line 2: No filter named 'unheard'"),
        (_text("tokenizer_config.json", '{"chat_template": "{{"}'), "template in tokenizer_config.json does not comp"),
        (
            _text("tokenizer_config.json", '{"chat_template": [{"name": "tool_use", "template": "{% for %}"}]}'),
            r"template in tokenizer_config.json \(tool_use\) does not compile",
        ),
        (
            _config(architectures=["GPT2LMHeadModel"]),
            "GPT2LMHeadModel is not supported: export knows .*LlamaForCausalLM, MistralForCausalLM",
        ),
        (_config(architectures=[], model_type="bert"), "model_type 'bert' is not supported"),
        (_config(architectures="Llama"), "architectures is 'Llama', expected a list"),
        (_config(hidden_size=None), "config.json has no hidden_size"),
        (_config(num_hidden_layers=-1), "num_hidden_layers is -1, expected a positive whole number"),
        (_config(num_attention_heads="4"), "num_attention_heads is '4', expected a positive whole number"),
        (_config(num_key_value_heads=3), "4 heads are no multiple of 3 key-value heads"),
        (_config(head_dim=12), "head_dim 12 is no multiple of 8"),
        (_config(hidden_act="gelu"), "hidden_act 'gelu' is not supported"),
        (_config(tie_word_embeddings="yes"), "tie_word_embeddings is 'yes', expected true or false"),
        (_config(rope_scaling={"rope_type": "mrope", "factor": 2}), "rope_type 'mrope' is not supported"),
        (_config(rope_scaling={"rope_type": "linear"}), "config.json has no factor"),
        (_config(tie_word_embeddings=False), "has no tensor lm_head.weight"),
    ],
)
def test_a_damaged_checkpoint(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    source = write_checkpoint(tmp_path / "source")
    damage(source)
    _refused(source, tmp_path, message)


def test_templates_as_transformers_writes_them_compile(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    text = "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}{% endfor %}"
    (source / "chat_template.jinja").write_text(text)
    export_checkpoint(source, tmp_path / "out", precision="fp32", verify=False)


def test_a_missing_shard(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny(num_shards=3))
    (source / "model-00002-of-00003.safetensors").unlink()
    _refused(source, tmp_path, r"model-00002-of-00003.safetensors cannot be read \(No such file")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"w": "../../secret.safetensors"}}, "is not a file beside it"),
        ({"weight_map": {"w": "model-00001-of-00002.safetensors"}}, "w is in the index and in no shard"),
    ],
)
def test_a_damaged_index(tmp_path: Path, index: dict[str, Any], message: str) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny(num_shards=2))
    write_json(source / "model.safetensors.index.json", index)
    _refused(source, tmp_path, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int3"}, "precision 'int3' is unknown: choose fp32, int8, int4"),
        ({"precision": "int8", "block_size": 32}, "block size 32: int4 takes 16, 32, 64, 128, 256, others none"),
        ({"precision": "int4", "block_size": 48}, "block size 48"),
        ({"precision": "int8", "max_context": 97}, "max context 97 is outside 1 to 96"),
        ({"precision": "int8", "max_context": 0}, "max context 0 is outside"),
    ],
)
def test_an_option_that_does_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = write_checkpoint(tmp_path / "source")
    _refused(source, tmp_path, message, **options)


def test_a_source_that_is_nothing(tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", tmp_path, "is neither a checkpoint folder nor a hub id")


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    _refused("some/model", tmp_path, r"could not be downloaded \(no route to host\)")


def test_an_unproven_export_is_kept_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ortserve.export.proof import limits

    impossible = {"int8": limits.Limits(max_mean_kl=0.0, min_top1_agreement=1.0, max_perplexity_ratio=1.0)}
    monkeypatch.setattr(limits, "RANDOM_LIMITS", impossible)
    source = write_checkpoint(tmp_path / "source")
    with pytest.raises(UnprovenError, match=r"differs from the reference: mean KL .* --allow-unproven") as caught:
        export_checkpoint(source, tmp_path / "out", precision="int8")
    assert "\n" not in str(caught.value)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verified"] is False
    assert report["findings"][0].startswith("mean KL at prefill")
    assert "**Unverified**" in (tmp_path / "out" / "README.md").read_text()
    export_checkpoint(source, tmp_path / "more", precision="int8", allow_unproven=True)
    assert not is_verified(tmp_path / "more")


def _refused(source: str | Path, folder: Path, message: str, **options: Any) -> None:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ExportError, match=message) as caught:
        export_checkpoint(source, folder / "out", **{"precision": "int8", **options})
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == before
