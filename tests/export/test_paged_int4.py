"""4-bit graphs for CUDA: weights are fitted to real activations, outliers folded, what loses too much has 8 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from ortserve.export.architecture import Linear
from ortserve.export.errors import ExportError
from ortserve.export.proof.graph_run import RowInput
from ortserve.export.proof.paged_run import PagedGraphRun
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes import recipe as recipes
from ortserve.export.recipes.calibrate import Observed, Place
from ortserve.export.recipes.precisions import CUDA_FORMS
from ortserve.export.recipes.recipe import weight_options
from ortserve.runtime.manifest import Manifest
from tests.export.checkpoints import Tiny, random_sequences, write_checkpoint
from tests.export.oracle import oracle_logits
from tests.export.proofs import proof_of

TINY = Tiny(tied=False)
OUTLIERS = [3, 20]  # channels of the stream, 64 times as large behind every norm, and units of every MLP
OF_VALUES, OF_CONTEXT = [5], [5, 21]  # a channel of the first value head, and of the two query heads that read it
INNER = tuple(f"layers.{layer}.{name}" for layer in (0, 1) for name in ("qkv", "attention_output", "gate_up", "down"))


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The function of `TINY`."""
    folder = write_checkpoint(tmp_path_factory.mktemp("outliers") / "source", TINY)
    tensors = load_file(folder / "model.safetensors")
    readers = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
    for name, value in tensors.items():
        if "norm" in name:
            value[OUTLIERS] *= 64
        elif any(reader in name for reader in readers):
            value[:, OUTLIERS] /= 64
        if "up_proj" in name:
            value[OUTLIERS] *= 64
        elif "down_proj" in name:
            value[:, OUTLIERS] /= 64
        elif "v_proj" in name:
            value[OF_VALUES] *= 64
        elif "o_proj" in name:
            value[:, OF_CONTEXT] /= 64
    save_file(tensors, folder / "model.safetensors")
    return folder


def _export(source: Path, folder: Path, *, forms: object = CUDA_FORMS, activations: str = "calibrated") -> Manifest:
    return export_checkpoint(
        source,
        folder,
        precision="int4",
        device="cuda",
        activations=activations,
        progress=False,
        verify=False,
        forms=forms,  # type: ignore[arg-type]
    )


def _logits(folder: Path, manifest: Manifest) -> NDArray[np.float32]:
    tokens = random_sequences(TINY.vocab_size, (24,))[0]
    return PagedGraphRun(folder, manifest, num_rows=1, capacity=32).run([RowInput(tokens, 0)])[0]


def _error(found: NDArray[np.float32]) -> float:
    """Of logits, against the model without outliers, which is the same function."""
    tensors = {name: value.astype(np.float32) for name, value in TINY.tensors().items()}
    expected = oracle_logits(TINY.config_json(), tensors, random_sequences(TINY.vocab_size, (24,))[0])
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_outliers_that_ruin_plain_rounding_are_folded(tmp_path: Path, outliers: Path) -> None:
    plain = _export(outliers, tmp_path / "plain", activations="token")
    fitted = _export(outliers, tmp_path / "fitted")
    assert not any(matrix.folded for matrix in plain.matrices)
    folded = {matrix.name for matrix in fitted.matrices if matrix.folded}
    assert set(INNER) <= folded
    found = {(matrix.precision, matrix.rounding, matrix.block_size) for matrix in fitted.matrices}
    assert found == {("int4", "none", 32), ("int8", "none", 32)}  # as the kernels compute: inputs stay floats
    assert _error(_logits(tmp_path / "fitted", fitted)) < 0.7 * _error(_logits(tmp_path / "plain", plain))


def test_one_product_of_gate_and_up_takes_over_what_was_folded_into_up(tmp_path: Path, outliers: Path) -> None:
    found = [
        _logits(tmp_path / gate_up, _export(outliers, tmp_path / gate_up, forms=replace(CUDA_FORMS, gate_up=gate_up)))
        for gate_up in ("stacked", "apart")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5 * np.abs(found[0]).max())


def test_folding_makes_no_activation_larger(tmp_path: Path, outliers: Path) -> None:
    """Half floats end at 65,504: norms, which make the inputs, are divided by 1 to 256."""
    manifest = _export(outliers, tmp_path / "out")
    graph = onnx.load(str(tmp_path / "out" / manifest.graph)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor).astype(np.float32) for tensor in graph.initializer}
    tensors = load_file(outliers / "model.safetensors")
    for mine, theirs in (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
        for layer in (0, 1):
            ratio = tensors[f"model.layers.{layer}.{theirs}.weight"] / stored[f"layers.{layer}.{mine}.weight"]
            np.testing.assert_allclose(np.exp2(np.rint(np.log2(ratio))), ratio, rtol=1e-3)
            assert 0.999 < ratio.min() < ratio[OUTLIERS].min()
            assert ratio.max() < 257


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 12))
def test_a_divisor_for_half_floats_is_from_1_to_256(seed: int, spread: float) -> None:
    generator = np.random.default_rng(seed)
    sizes = np.exp2(spread * generator.standard_normal(32)).astype(np.float32)
    sample = generator.standard_normal((24, 32)).astype(np.float32) * sizes
    rows = generator.standard_normal((16, 32)).astype(np.float32) / sizes
    place = Place("gate_up", (Linear(("w",)),), True, 16, 1)
    seen = Observed(place, np.abs(sample).max(axis=0), np.mean(np.square(sample), axis=0), sample, rows)
    options = weight_options(seen, 32)
    for chosen in (options.block, options.wide_block):
        assert chosen is not None
        if chosen.divisor is not None:
            powers = np.log2(chosen.divisor)
            np.testing.assert_array_equal(powers, np.rint(powers))
            assert 0 <= powers.min() <= powers.max() <= 8
    assert options.block is not None
    assert options.wide_block is not None
    assert spread > 2 or options.wide_block.error < options.block.error  # beyond it neither has anything left


def test_what_loses_too_much_has_8_bits_in_blocks_and_what_still_does_is_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "source", TINY)
    monkeypatch.setattr(recipes, "INT4_ERRORS", (0.0,) * 4)
    manifest = export_checkpoint(source, tmp_path / "wide", precision="int4", device="cuda", progress=False)
    assert [(one.name, one.precision) for one in manifest.matrices] == [(name, "int8") for name in (*INNER, "lm_head")]
    assert _products(tmp_path / "wide", manifest) == dict.fromkeys((*INNER, "lm_head"), (8, 32, 3))
    assert proof_of(tmp_path / "wide").cases[0].mean_kl < 1e-3
    monkeypatch.setattr(recipes, "INT8_ERRORS", (0.0,) * 4)
    manifest = _export(source, tmp_path / "float")
    assert {matrix.precision for matrix in manifest.matrices} == {"fp16"}
    assert _products(tmp_path / "float", manifest) == {}
    assert _error(_logits(tmp_path / "float", manifest)) < 5e-3


def _products(folder: Path, manifest: Manifest) -> dict[str, tuple[int, int, int]]:
    """Bits, block size and number of inputs of products in blocks; there are no others with codes."""
    graph = onnx.load(str(folder / manifest.graph), load_external_data=False).graph
    assert {"QGemm", "MatMulInteger", "QuantizeLinear"}.isdisjoint(node.op_type for node in graph.node)
    products = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            options = {attribute.name: attribute.i for attribute in node.attribute}
            products[node.output[0]] = (options["bits"], options["block_size"], len(node.input))
    return products


def test_a_weight_beyond_half_floats_is_named(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = 1e5
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.down_proj\.weight holds values beyond float16"):
        _export(source, tmp_path / "out", activations="token")
