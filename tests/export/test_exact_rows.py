"""Quantized products are exact in integers, and a row never depends on the rows beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ortserve.export.architecture import Linear
from ortserve.export.graph.builder import GraphBuilder
from ortserve.export.graph.data_file import DataFile
from ortserve.export.graph.matrix import multiply, store_matrix
from ortserve.export.proof.graph_run import GraphRun, RowInput
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes.layer_plan import MatrixPlan
from ortserve.export.recipes.quantize import quantize_int8_rows
from ortserve.export.sources.checkpoint import open_checkpoint
from tests.export.checkpoints import Tiny, random_sequences, write_checkpoint

NAME = "model.layers.0.mlp.gate_proj.weight"
NUM_ROWS, NUM_COLUMNS = 48, 32


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> tuple[ort.InferenceSession, NDArray[np.float32]]:
    """A session that multiplies by one matrix of full-range int8 weights, and the matrix."""
    folder = tmp_path_factory.mktemp("product")
    checkpoint = open_checkpoint(write_checkpoint(folder / "source", Tiny()))
    plan = MatrixPlan("product", Linear((NAME,), ()), NUM_ROWS, NUM_COLUMNS, "int8", 0)
    with DataFile(folder / "model.onnx.data", progress=lambda num_bytes: None) as data:
        graph = GraphBuilder(data)
        graph.input("value", np.float32, ["T", NUM_COLUMNS])
        graph.input("rows", np.int64, ["T"])
        store_matrix(graph, plan, checkpoint)
        graph.output(multiply(graph, plan, "value", rows="rows"), np.float32, ["T", NUM_ROWS])
        model = graph.model(name="product", producer_version="test")
    onnx.save(model, str(folder / "model.onnx"))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return session, checkpoint.read(NAME)


def _run(session: ort.InferenceSession, value: NDArray[np.float32]) -> NDArray[np.float32]:
    feeds: dict[str, Any] = {"value": value, "rows": np.zeros(len(value), np.int64)}
    result: NDArray[np.float32] = session.run(None, feeds)[0]
    return result


def _exact(value: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    codes, weight_scale = quantize_int8_rows(matrix)
    limit = np.abs(value).max(axis=1) * np.float32(1 / 127)
    scale = np.maximum(limit, np.float32(1e-30))
    quantized = np.clip(np.rint(value / scale[:, None]), -128, 127).astype(np.int64)
    sums = (quantized @ codes.T.astype(np.int64)).astype(np.float32)
    exact: NDArray[np.float32] = (sums * weight_scale) * scale[:, None]
    return exact


@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(1, 20), seed=st.integers(0, 2**32 - 1), spread=st.floats(0.0, 6.0))
def test_int8_products_are_exact_integer_sums_times_scales(
    product: tuple[ort.InferenceSession, NDArray[np.float32]], num_rows: int, seed: int, spread: float
) -> None:
    session, matrix = product
    generator = np.random.default_rng(seed)
    magnitudes = np.exp(spread * generator.standard_normal((num_rows, 1)))
    value = (generator.standard_normal((num_rows, NUM_COLUMNS)) * magnitudes).astype(np.float32)
    value[0] = abs(value[0]).max()  # every activation at its limit: where kernels with 16-bit sums saturate
    np.testing.assert_array_equal(_run(session, value), _exact(value, matrix))


@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(2, 40), row=st.integers(0, 39), seed=st.integers(0, 2**32 - 1))
def test_an_int8_row_alone_has_the_bits_it_has_in_a_batch(
    product: tuple[ort.InferenceSession, NDArray[np.float32]], num_rows: int, row: int, seed: int
) -> None:
    session, _ = product
    row %= num_rows
    value = np.random.default_rng(seed).standard_normal((num_rows, NUM_COLUMNS)).astype(np.float32)
    value[(row + 1) % num_rows] *= 1e6  # a neighbour that a shared scale would follow
    np.testing.assert_array_equal(_run(session, value[row : row + 1])[0], _run(session, value)[row])


def test_a_row_of_zeros_gives_zeros(product: tuple[ort.InferenceSession, NDArray[np.float32]]) -> None:
    session, _ = product
    value = np.zeros((2, NUM_COLUMNS), np.float32)
    np.testing.assert_array_equal(_run(session, value), np.zeros((2, NUM_ROWS), np.float32))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_of_the_whole_model_has_the_same_bits_alone_and_beside_others(tmp_path: Path, precision: str) -> None:
    """With two query tokens or more in every row; one token takes another attention kernel."""
    source = write_checkpoint(tmp_path / "source")
    manifest = export_checkpoint(source, tmp_path / "out", precision=precision, verify=False)
    sequences = random_sequences(manifest.vocab_size, (11, 9, 2))
    alone = GraphRun(tmp_path / "out", manifest, num_rows=1, capacity=32)
    together = GraphRun(tmp_path / "out", manifest, num_rows=4, capacity=32)
    batch = together.run([RowInput(tokens, 0) for tokens in (*sequences, [])])
    for tokens, logits in zip(sequences, batch, strict=False):
        np.testing.assert_array_equal(alone.run([RowInput(tokens, 0)])[0], logits)


def test_a_step_may_pack_more_tokens_than_one_context_holds(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny(max_context=8))
    manifest = export_checkpoint(source, tmp_path / "out", precision="fp32", verify=False)
    sequences = random_sequences(manifest.vocab_size, (8, 8, 8))
    alone = GraphRun(tmp_path / "out", manifest, num_rows=1, capacity=16)
    batch = GraphRun(tmp_path / "out", manifest, num_rows=3, capacity=16).run([RowInput(row, 0) for row in sequences])
    for tokens, logits in zip(sequences, batch, strict=True):
        np.testing.assert_array_equal(alone.run([RowInput(tokens, 0)])[0], logits)


def test_only_wanted_logits_are_computed_and_the_cache_is_updated_in_place(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    manifest = export_checkpoint(source, tmp_path / "out", precision="fp32", verify=False)
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    assert [value.name for value in model.graph.input][:8] == [
        "input_ids", "position_ids", "seqlens_k", "query_lengths", "total_length", "pad_index", "unpad_index",
        "logit_index",
    ]  # fmt: skip
    (tokens,) = random_sequences(manifest.vocab_size, (6,))
    session = ort.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    shape = (1, manifest.kv.num_kv_heads, 16, manifest.kv.head_dim)
    feeds: dict[str, Any] = {
        "input_ids": np.array(tokens), "position_ids": np.arange(6), "seqlens_k": np.array([5], np.int32),
        "query_lengths": np.array([6], np.int32), "total_length": np.array(16, np.int32),
        "pad_index": np.arange(6)[None], "unpad_index": np.arange(6), "logit_index": np.array([5, 2]),
    }  # fmt: skip
    for layer in range(manifest.kv.num_layers):
        feeds |= {f"past.{layer}.{part}": np.zeros(shape, np.float32) for part in ("key", "value")}
    (logits,) = session.run(["logits"], feeds)
    (everything,) = GraphRun(tmp_path / "out", manifest, num_rows=1, capacity=16).run([RowInput(tokens, 0)])
    np.testing.assert_allclose(logits, everything[[5, 2]], rtol=0, atol=1e-5)
