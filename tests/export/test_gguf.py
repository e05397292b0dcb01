"""A GGUF file is exported to the very graph that the same weights in safetensors become; damaged ones are named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.open_source import open_source
from ortserve.export.publish import export_checkpoint
from ortserve.runtime.manifest import Manifest
from tests.export.checkpoints import Tiny, write_checkpoint, write_json
from tests.export.family_checkpoints import copy_family
from tests.export.gguf_writer import Tensor, decode, interleave, write_gguf
from tests.export.proofs import proof_of

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LLAMA = Tiny(hidden_size=64, intermediate_size=96, head_dim=16)


@dataclass(frozen=True, slots=True)
class Pair:
    """The same weights twice: a checkpoint folder and what a GGUF file of them holds."""

    folder: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


def make_pair(folder: Path, architecture: str, kind: str) -> Pair:
    """The checkpoint's matrices are rounded as `kind` rounds them; the GGUF file's are written from what they were."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = (config.get("rope_parameters") or config)["rope_theta"]
    metadata = {
        "general.architecture": architecture,
        "general.alignment": 32,
        **{
            f"{architecture}.{key}": config[name]
            for key, name in {
                "embedding_length": "hidden_size",
                "feed_forward_length": "intermediate_size",
                "block_count": "num_hidden_layers",
                "attention.head_count": "num_attention_heads",
                "attention.head_count_kv": "num_key_value_heads",
                "attention.layer_norm_rms_epsilon": "rms_norm_eps",
                "rope.freq_base": "rope_theta",
                "context_length": "max_position_embeddings",
            }.items()
        },
    }
    if "head_dim" in config:
        metadata[f"{architecture}.attention.key_length"] = config["head_dim"]
    tensors: dict[str, Tensor] = {}
    rounded: dict[str, NDArray[np.float32]] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        values = value.astype(np.float32)
        stem, end = name.rsplit(".", 1)
        parts = stem.split(".")
        prefix = f"blk.{parts[2]}." if parts[1:2] == ["layers"] else ""
        found = NAMES[".".join(parts[3:]) if prefix else stem]
        stored_as = kind if values.ndim == 2 else "F32"
        rounded[name] = decode(stored_as, values)
        if architecture == "llama" and found in ("attn_q", "attn_k"):
            values = interleave(values, config["num_attention_heads" if found == "attn_q" else "num_key_value_heads"])
        tensors[f"{prefix}{found}.{end}"] = (stored_as, values)
    save_file(rounded, folder / "model.safetensors")
    return Pair(folder, metadata, tensors)


def _export(source: Path, out: Path, precision: str = "fp32") -> Manifest:
    with open_source(source) as checkpoint:
        return export_checkpoint(checkpoint, out, precision=precision, max_context=48, progress=False, verify=False)


def _same_data(first: Path, second: Path) -> None:
    assert (first / "model.onnx.data").read_bytes() == (second / "model.onnx.data").read_bytes()


def refused(path: Path) -> str:
    with pytest.raises(ExportError) as caught, open_source(path) as checkpoint:
        read_architecture(checkpoint)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_llama_becomes_the_same_graph_as_from_safetensors(tmp_path: Path, kind: str) -> None:
    pair = make_pair(write_checkpoint(tmp_path / "source", LLAMA), "llama", kind)
    file = write_gguf(tmp_path / "tiny.gguf", pair.metadata, pair.tensors)
    for precision in ("fp32", "int8"):
        found = _export(file, tmp_path / f"gguf-{precision}", precision)
        wanted = _export(pair.folder, tmp_path / f"folder-{precision}", precision)
        _same_data(tmp_path / f"gguf-{precision}", tmp_path / f"folder-{precision}")
        assert (found.name, found.source) == ("tiny", "tiny.gguf")
        assert (found.family, found.num_parameters) == (wanted.family, wanted.num_parameters)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_becomes_the_same_graph_as_from_safetensors(tmp_path: Path, family: str) -> None:
    rope = {"rope_type": "default", "rope_theta": 100.0}
    source = copy_family(family, tmp_path / "source", rope_parameters=rope, layer_types=None, use_sliding_window=False)
    pair = make_pair(source, family, "F16")
    file = write_gguf(tmp_path / "tiny.gguf", pair.metadata, pair.tensors, version=2)
    _export(file, tmp_path / "gguf")
    _export(pair.folder, tmp_path / "folder")
    _same_data(tmp_path / "gguf", tmp_path / "folder")


def test_the_proof_passes_and_sees_rows_that_were_not_put_back(tmp_path: Path) -> None:
    pair = make_pair(write_checkpoint(tmp_path / "source", LLAMA), "llama", "F32")
    file = write_gguf(tmp_path / "tiny.gguf", pair.metadata, pair.tensors)
    with open_source(file) as checkpoint:
        export_checkpoint(checkpoint, tmp_path / "out", precision="fp32", progress=False)
        assert proof_of(tmp_path / "out").passed
        right = checkpoint.read("model.layers.0.self_attn.q_proj.weight")
    stored = pair.tensors["blk.0.attn_q.weight"][1]
    assert not np.array_equal(right, stored)
    np.testing.assert_array_equal(
        right, load_file(pair.folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    )


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_any_range_of_rows_is_that_of_the_whole(tmp_path: Path, kind: str) -> None:
    pair = make_pair(write_checkpoint(tmp_path / "source", LLAMA), "llama", kind)
    with open_source(write_gguf(tmp_path / "tiny.gguf", pair.metadata, pair.tensors)) as checkpoint:
        for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
            whole = checkpoint.read(name)
            for start in range(0, len(whole), 5):
                for stop in range(start, len(whole) + 3, 7):
                    np.testing.assert_array_equal(checkpoint.read_rows(name, start, stop), whole[start:stop])


BYTE_LEVEL: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "c", "Ġ", "ab", "Ġab", "<end>", "<tool>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 1, 3, 4],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.eos_token_id": 6,
    "tokenizer.chat_template": "{{ messages }}",
}
PIECES: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x21>", "▁", "a", "b", "▁a", "ab", "▁ab"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -6.0, -4.0, -5.0, -2.0, -1.0, -3.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def _with_tokenizer(folder: Path, fields: Mapping[str, Any]) -> tuple[Manifest, Tokenizer, Any]:
    pair = make_pair(write_checkpoint(folder / "source", LLAMA), "llama", "F32")
    manifest = _export(write_gguf(folder / "tiny.gguf", {**pair.metadata, **fields}, pair.tensors), folder / "out")
    tokenizer = Tokenizer.from_file(str(folder / "out" / "tokenizer.json"))
    return manifest, tokenizer, json.loads((folder / "out" / "tokenizer_config.json").read_text())


def test_a_byte_level_tokenizer_and_its_template_come_along(tmp_path: Path) -> None:
    manifest, tokenizer, config = _with_tokenizer(tmp_path, BYTE_LEVEL)
    assert tokenizer.encode("ab ab<end>c<tool>").ids == [4, 5, 6, 2, 7]
    assert tokenizer.decode([4, 5, 6, 7]) == "ab ab<tool>"
    assert config["chat_template"] == "{{ messages }}"
    assert (manifest.eos_token_ids, manifest.num_tokens, manifest.add_bos) == ((6,), 8, False)


def test_a_sentencepiece_tokenizer_joins_by_score(tmp_path: Path) -> None:
    """ab scores above ▁a: the text ▁ab is joined from ▁ and ab, though ▁a comes first."""
    manifest, tokenizer, _ = _with_tokenizer(tmp_path, PIECES)
    assert tokenizer.encode("ab a!").ids == [9, 7, 3]
    assert tokenizer.decode([9, 7, 3]) == "ab a!"
    assert (manifest.eos_token_ids, manifest.bos_token_id, manifest.add_bos) == ((2,), 1, True)


def test_the_bundled_models_own_tokens_survive_a_known_pre_tokenizer(tmp_path: Path) -> None:
    """Real vocabulary and merges, written as llama.cpp writes them, encode as the original with that splitting."""
    from ortserve.export.bundled import bundled_model

    original = json.loads((bundled_model() / "tokenizer.json").read_text())
    vocabulary = sorted(original["model"]["vocab"], key=original["model"]["vocab"].get)
    added = {token["id"]: token["content"] for token in original["added_tokens"]}
    size = 1 + max([*original["model"]["vocab"].values(), *added])
    by_id = {index: word for word, index in original["model"]["vocab"].items()} | added
    fields = {
        **BYTE_LEVEL,
        "tokenizer.ggml.tokens": [by_id.get(index, f"[unused {index}]") for index in range(size)],
        "tokenizer.ggml.token_type": [3 if index in added else 1 if index in by_id else 5 for index in range(size)],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in original["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": 2,
    }
    tiny = Tiny(hidden_size=64, intermediate_size=96, vocab_size=size)
    pair = make_pair(write_checkpoint(tmp_path / "source", tiny), "llama", "F32")
    _export(write_gguf(tmp_path / "tiny.gguf", {**pair.metadata, **fields}, pair.tensors), tmp_path / "out")
    found = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    original["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    wanted = Tokenizer.from_str(json.dumps(original))
    assert len(vocabulary) > 1500
    for sample in (
        "Hello, world! It's 12345 o'clock.",
        "  two  spaces\n\nand lines",
        "<|im_start|>user\nhé ☃<|im_end|>",
    ):
        assert found.encode(sample).ids == wanted.encode(sample).ids
        assert found.decode(found.encode(sample).ids) == wanted.decode(wanted.encode(sample).ids)


def test_damaged_tokenizers_are_named(tmp_path: Path) -> None:
    pair = make_pair(write_checkpoint(tmp_path / "source", LLAMA), "llama", "F32")
    equal = {**PIECES, "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -6.0, -4.0, -5.0, -2.0, -2.0, -3.0]}
    for fields, message in (
        ({**BYTE_LEVEL, "tokenizer.ggml.merges": ["a x"]}, "the merge 'a x' is not of tokens"),
        ({**BYTE_LEVEL, "tokenizer.ggml.tokens": ["a", "a"]}, "names a token twice"),
        ({**BYTE_LEVEL, "tokenizer.ggml.token_type": [1]}, "token_type is no list of 8 kinds"),
        ({**PIECES, "tokenizer.ggml.scores": [0.5]}, "scores is no list of 10 numbers"),
        ({**PIECES, "tokenizer.ggml.bos_token_id": 99}, "bos_token_id 99 is no id below 10"),
        (equal, "'▁a' and 'ab' have the same score -2.0"),
    ):
        assert message in refused(write_gguf(tmp_path / "tiny.gguf", {**pair.metadata, **fields}, pair.tensors))


def test_a_gguf_file_is_exported_on_first_use(tmp_path: Path) -> None:
    from ortserve.export.first_use import ensure_exported

    pair = make_pair(write_checkpoint(tmp_path / "source", LLAMA), "llama", "F32")
    metadata = {**pair.metadata, **BYTE_LEVEL}
    file = write_gguf(tmp_path / "tiny.gguf", metadata, pair.tensors)
    first = ensure_exported(file, tmp_path / "cache", precision="fp32", progress=False)
    assert ensure_exported(str(file), tmp_path / "cache", precision="fp32", progress=False) == first
    write_gguf(file, {**metadata, "tokenizer.chat_template": "other"}, pair.tensors)
    assert ensure_exported(file, tmp_path / "cache", precision="fp32", progress=False) != first
    write_json(tmp_path / "cache" / "note.json", {})  # the cache holds what it made and nothing temporary
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith("."))[-1].startswith(
        "tiny"
    )
