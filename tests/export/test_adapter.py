"""A LoRA adapter is merged as PEFT says, the proof sees a wrong merge, and what is no sum of matrices is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ortserve.export.errors import ExportError, UnprovenError
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.open_source import open_source
from ortserve.export.proof.graph_run import GraphRun, RowInput
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources import adapter as adapter_module
from ortserve.export.sources.adapter import merge_adapter
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.runtime.manifest import read_manifest
from tests.export.checkpoints import random_sequences, write_json
from tests.export.command_line import run_verb
from tests.export.family_checkpoints import FOLDER, MAX_CONTEXT, assert_close, copy_family
from tests.export.proofs import proof_of

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 3,
    "lora_alpha": 5.0,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
ADAPTERS = Path(__file__).parent / "adapters"
Tensors = dict[str, NDArray[np.float32]]


def _write(folder: Path, base: Path, targets: tuple[str, ...], **fields: Any) -> Path:
    """An adapter of random A and B for every matrix whose module ends with a target."""
    config = {**CONFIG, "target_modules": list(targets), **fields}
    generator = np.random.default_rng(4)
    tensors: Tensors = {}
    for name, stored in open_checkpoint(base).tensors.items():
        module = name.removesuffix(".weight")
        if not module.endswith(targets):
            continue
        rank = next((size for key, size in config["rank_pattern"].items() if module.endswith(key)), config["r"])
        for half, shape in {"A": (rank, stored.shape[1]), "B": (stored.shape[0], rank)}.items():
            values = generator.standard_normal(shape) / np.sqrt(shape[1])
            tensors[f"base_model.model.{module}.lora_{half}.weight"] = values.astype(np.float32)
    folder.mkdir()
    write_json(folder / "adapter_config.json", config)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _merged_by_hand(base: Path, adapter: Path, scale_of: Mapping[str, float], default: float) -> Tensors:
    tensors = {name: value.astype(np.float32) for name, value in load_file(base / "model.safetensors").items()}
    stored = load_file(adapter / "adapter_model.safetensors")
    for key, up in stored.items():
        if ".lora_B." in key:
            name = key.removeprefix("base_model.model.").replace(".lora_B", "")
            scale = next((value for end, value in scale_of.items() if name.endswith(f"{end}.weight")), default)
            tensors[name] = tensors[name] + np.float32(scale) * (up @ stored[key.replace("lora_B", "lora_A")])
    return tensors


@pytest.mark.parametrize(
    ("family", "targets", "fields", "scale_of", "default"),
    [
        ("llama", ("q_proj", "v_proj"), {}, {}, 5 / 3),
        ("qwen3", ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"), {"use_rslora": True}, {}, 5 / 3**0.5),
        ("phi3", ("qkv_proj", "gate_up_proj"), {}, {}, 5 / 3),
        ("qwen3_moe", ("experts.2.up_proj", "experts.4.down_proj"), {}, {}, 5 / 3),
        (
            "mistral",
            ("q_proj", "up_proj"),
            {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 7.0}},
            {"up_proj": 5 / 2, "q_proj": 7 / 3},
            0.0,
        ),
    ],
)
def test_an_adapter_becomes_the_merged_checkpoint(
    tmp_path: Path,
    family: str,
    targets: tuple[str, ...],
    fields: dict[str, Any],
    scale_of: dict[str, float],
    default: float,
) -> None:
    base = copy_family(family, tmp_path / "base")
    adapter = _write(tmp_path / "style", base, targets, **fields)
    merged = copy_family(family, tmp_path / "merged")
    save_file(_merged_by_hand(base, adapter, scale_of, default), merged / "model.safetensors")
    sequences = random_sequences(64, (9, 5))
    with open_source(base, adapter) as checkpoint:
        found = reference_logits(checkpoint, read_architecture(checkpoint), sequences)
        export_checkpoint(checkpoint, tmp_path / "out", precision="fp32", max_context=MAX_CONTEXT, progress=False)
    wanted_checkpoint = open_checkpoint(merged)
    wanted = reference_logits(wanted_checkpoint, read_architecture(wanted_checkpoint), sequences)
    for logits, by_hand in zip(found, wanted, strict=True):
        # two float32 passes with differently rounded weights; PEFT's own logits are compared more closely below
        np.testing.assert_allclose(logits, by_hand, rtol=0, atol=1e-5 * float(np.abs(by_hand).max()))
    assert max(case.max_abs_error for case in proof_of(tmp_path / "out").cases) < 3e-5
    plain = open_checkpoint(base)
    assert np.abs(reference_logits(plain, read_architecture(plain), sequences)[0] - wanted[0]).max() > 0.05


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_logits_are_those_of_peft(tmp_path: Path, family: str) -> None:
    """Adapters and logits made by PEFT; the graph as well as the reference."""
    expected = load_file(ADAPTERS / family / "expected.safetensors")
    tokens = expected["tokens"].tolist()
    with open_source(FOLDER / family, ADAPTERS / family) as checkpoint:
        (found,) = reference_logits(checkpoint, read_architecture(checkpoint), [tokens])
        manifest = export_checkpoint(
            checkpoint, tmp_path / "out", precision="fp32", max_context=MAX_CONTEXT, progress=False, verify=False
        )
    assert_close(found, expected["logits"])
    run = GraphRun(tmp_path / "out", manifest, num_rows=1, capacity=64)
    assert_close(run.run([RowInput(tokens, 0)])[0], expected["logits"])


def test_the_command_line_merges_and_proves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = copy_family("llama", tmp_path / "base")
    out, adapter = tmp_path / "out", ADAPTERS / "llama"
    limit = ("--max-context", str(MAX_CONTEXT))
    assert run_verb("export", base, out, "--precision", "fp32", "--adapter", adapter, *limit) == 0
    assert run_verb("verify", out, "--against", base, "--adapter", adapter) == 0
    capsys.readouterr()
    assert run_verb("verify", out, "--against", base) == 1
    assert "holds an adapter, llama: name its folder with --adapter" in capsys.readouterr().err
    other = _write(tmp_path / "style", base, ("q_proj",))
    assert run_verb("verify", out, "--against", base, "--adapter", other) == 1
    assert "holds another adapter, llama" in capsys.readouterr().err
    with pytest.raises(ExportError, match="--adapter is compared with --against"):
        run_verb("verify", out, "--adapter", adapter)
    with pytest.raises(ExportError, match="--adapter is for models that generate"):
        run_verb("export", base, tmp_path / "none", "--task", "embeddings", "--adapter", adapter)


def test_the_manifest_says_what_was_merged(tmp_path: Path) -> None:
    base = copy_family("llama", tmp_path / "base")
    adapter = _write(tmp_path / "style", base, ("q_proj", "v_proj"))
    with open_source(base, adapter) as checkpoint:
        export_checkpoint(checkpoint, tmp_path / "out", precision="int8", max_context=MAX_CONTEXT, progress=False)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.name == "base-style"
    assert manifest.adapter is not None
    assert (manifest.adapter.name, manifest.adapter.rank, manifest.adapter.alpha) == ("style", 3, 5.0)
    assert (manifest.adapter.rank_stabilized, manifest.adapter.num_matrices) == (False, 4)
    assert len(manifest.adapter.digest) == 64


@pytest.mark.parametrize("factor", [0.9, 0.0, -1.0])
def test_the_proof_sees_a_wrong_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """The reference computes the adapter beside the matrix, from the adapter's own files."""
    base = copy_family("llama", tmp_path / "base")
    adapter = _write(tmp_path / "style", base, ("q_proj", "v_proj", "down_proj"))
    right = adapter_module.MergedTensor

    def wrong(base: Any, down: Any, up: Any, scale: float) -> adapter_module.MergedTensor:
        return right(base, down, up, scale * factor)

    monkeypatch.setattr(adapter_module, "MergedTensor", wrong)
    with open_source(base, adapter) as checkpoint, pytest.raises(UnprovenError):
        export_checkpoint(checkpoint, tmp_path / "out", precision="fp32", max_context=MAX_CONTEXT, progress=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "adapters of type 'IA3' are not merged: export knows LORA"),
        ({"bias": "all"}, "bias 'all' is not merged"),
        ({"use_dora": True}, "use_dora is set, which export does not merge"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters is set"),
        ({"r": 4}, "of rank 4 do not fit model.layers"),
        ({"r": "x"}, "r is 'x', expected a positive whole number"),
        ({"lora_alpha": None}, "has no a"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "is not a plain name of modules"),
        ({"rank_pattern": [1]}, "rank_pattern is no object"),
    ],
)
def test_settings_that_no_sum_holds_are_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    base = FOLDER / "llama"
    adapter = _write(tmp_path / "style", base, ("q_proj",))
    config = json.loads((adapter / "adapter_config.json").read_text())
    write_json(adapter / "adapter_config.json", {**config, **fields})
    with pytest.raises(ExportError) as caught:
        merge_adapter(open_checkpoint(base), adapter)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _change(adapter: Path, change: Any) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop(next(iter(found))), "has only one of lora_A and lora_B"),
        (lambda found: found[next(iter(found))].fill(np.nan), "holds values that are not finite"),
        (lambda found: found.update({"base_model.model.x.lora_embedding_A": np.ones(2)}), "is no lora_A or lora_B"),
        (
            lambda found: found.update(
                {f"base_model.model.model.layers.9.q.lora_{half}.weight": np.ones((3, 3)) for half in "AB"}
            ),
            "the adapter is for model.layers.9.q.weight, which llama lacks",
        ),
        (
            lambda found: found.update(
                {f"base_model.model.lm_head.lora_{half}.weight": np.ones((3, 3)) for half in "AB"}
            ),
            "lm_head.weight is adapted, which export does not merge",
        ),
        (lambda found: found.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    adapter = _write(tmp_path / "style", FOLDER / "llama", ("q_proj",))
    _change(adapter, change)
    with pytest.raises(ExportError) as caught:
        merge_adapter(open_checkpoint(FOLDER / "llama"), adapter)
    assert message in str(caught.value)


def test_folders_that_are_no_adapter_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no adapter_config.json"):
        merge_adapter(open_checkpoint(FOLDER / "llama"), tmp_path)
    write_json(tmp_path / "adapter_config.json", CONFIG)
    with pytest.raises(ExportError, match=r"has no adapter_model.safetensors: save the adapter as safetensors"):
        merge_adapter(open_checkpoint(FOLDER / "llama"), tmp_path)


def test_an_adapter_alone_is_not_served(tmp_path: Path) -> None:
    adapter = _write(tmp_path / "style", FOLDER / "llama", ("q_proj",))
    with pytest.raises(
        ExportError, match="is an adapter, which is not served by itself or chosen by request: merge it"
    ):
        open_checkpoint(adapter)
