"""Exported encoders give what sentence-transformers computes, and every planted error is caught by the proof."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ortserve.export.encoders.bridge import DenseModule
from ortserve.export.encoders.proof import tokenize
from ortserve.export.encoders.proof_texts import PAIRS, TEXTS
from ortserve.export.encoders.report import check_encoder, describe_encoder
from ortserve.export.errors import CheckFailedError, ExportError, UnprovenError
from ortserve.runtime.encoders.driver import EncoderDriver, EncoderLimits
from ortserve.runtime.encoders.encoder import Encoder
from ortserve.runtime.encoders.manifest import read_encoder_manifest
from ortserve.runtime.manifest import MANIFEST_NAME
from ortserve.runtime.report import REPORT_NAME, read_report
from tests.export.encoder_fixtures import (
    EMBEDDERS,
    NAMES,
    RERANKERS,
    made_of,
    plan_of,
    publish,
    reference_of,
    task_of,
)
from tests.export.proofs import encoder_proof_of
from tests.waiting import PATIENCE_S

SHAPES = {"bert": 16, "distilbert": 48, "modernbert": 32, "mpnet": 16, "xlm-roberta": 10}


def test_the_fixtures_are_there() -> None:
    assert set(EMBEDDERS) == set(SHAPES)
    assert set(RERANKERS) == {"bert-rerank", "xlm-roberta-rerank"}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_proved_and_whole(name: str, precision: str, tmp_path: Path) -> None:
    manifest = publish(name, tmp_path / "out", precision=precision)
    proof = encoder_proof_of(tmp_path / "out")
    assert proof.passed
    num_cases = 2 if precision == "fp32" else 4
    assert [case.num_texts for case in proof.cases] == [len(reference_of(name))] * num_cases
    assert read_encoder_manifest(tmp_path / "out") == manifest
    assert check_encoder(tmp_path / "out") == manifest
    assert manifest.num_outputs == SHAPES.get(name, 1)
    assert manifest.max_length == 64
    assert manifest.task == task_of(name)
    shown = describe_encoder(manifest, read_report(tmp_path / "out"))
    for words in (f"{name} (", precision, "sentence-transformers 5.7.0", "optimum 2.1.0", "passed"):
        assert words in shown


@pytest.mark.parametrize("name", NAMES)
def test_a_float_export_is_the_reference_to_the_last_digits(name: str, tmp_path: Path) -> None:
    manifest = publish(name, tmp_path / "out")
    inputs = tokenize(tmp_path / "out", manifest, TEXTS, PAIRS)
    rows = Encoder(tmp_path / "out", manifest, num_threads=1).encode(inputs)
    np.testing.assert_allclose(rows, reference_of(name), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_the_texts_of_the_proof_differ(name: str) -> None:
    """A proof on vectors that are all alike would pass whatever the graph does."""
    rows = reference_of(name)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.median(unit @ unit.T) < 0.97


@pytest.mark.parametrize(("precision", "tolerance", "cosine"), [("fp32", 1e-5, 0.9999999), ("int8", 0.05, 0.9999)])
@pytest.mark.parametrize("name", EMBEDDERS)
def test_batched_is_alone(name: str, precision: str, tolerance: float, cosine: float, tmp_path: Path) -> None:
    manifest = publish(name, tmp_path / "out", precision=precision)
    inputs = tokenize(tmp_path / "out", manifest, TEXTS, PAIRS)
    encoder = Encoder(tmp_path / "out", manifest, num_threads=2)
    driver = EncoderDriver(encoder, EncoderLimits(batch_tokens=256))
    try:
        together = driver.submit(inputs).result(PATIENCE_S)
        alone = np.concatenate([driver.submit([one]).result(PATIENCE_S) for one in inputs])
    finally:
        driver.close()
    np.testing.assert_allclose(together, alone, atol=tolerance * np.abs(alone).max())
    norms = np.linalg.norm(together, axis=1) * np.linalg.norm(alone, axis=1)
    assert ((together * alone).sum(axis=1) / norms).min() >= cosine


def test_int8_holds_int8(tmp_path: Path) -> None:
    fp32 = publish("bert", tmp_path / "fp32")
    int8 = publish("bert", tmp_path / "int8", precision="int8")
    assert int8.num_parameters == fp32.num_parameters
    assert int8.weight_bytes < 0.6 * fp32.weight_bytes
    graph = onnx.load(str(tmp_path / "int8" / "model.onnx"), load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "QGemm"]
    assert len(products) == 12  # six for each of two layers
    kept = [node for node in graph.node if node.op_type == "MatMul"]
    assert len(kept) == 4  # attention itself


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert", {"pooling": ("cls",)}),
        ("bert", {"pooling": ("max",)}),
        ("mpnet", {"pooling": ("mean",)}),
        ("mpnet", {"pooling": ("lasttoken",)}),
        ("xlm-roberta", {"pooling": ("mean",)}),
        ("bert", {"normalized": False}),
        ("distilbert", {"normalized": True}),
        ("distilbert", {"pooling": ("mean", "max", "cls")}),
        ("modernbert", {"pooling": ("lasttoken", "mean")}),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_wrong_modules_are_caught(name: str, changes: dict[str, Any], precision: str, tmp_path: Path) -> None:
    with pytest.raises(UnprovenError, match="differs from the reference"):
        publish(name, tmp_path / "out", plan=plan_of(name, precision, **changes))
    assert not encoder_proof_of(tmp_path / "out").passed
    assert not read_report(tmp_path / "out").verified


def test_wrong_dense_modules_are_caught(tmp_path: Path) -> None:
    made = made_of("xlm-roberta")
    first, second = made.dense
    planted = [
        (replace(first, activation="Identity"), second),
        (replace(first, bias=None), second),
        (first, replace(second, activation="Tanh")),
        (DenseModule(first.weight[::-1], first.bias, first.activation), second),
    ]
    for place, dense in enumerate(planted):
        with pytest.raises(UnprovenError):
            publish("xlm-roberta", tmp_path / f"out-{place}", made=replace(made, dense=dense))
    with pytest.raises(ExportError, match="lists 2 Dense modules, 1 were read"):
        publish("xlm-roberta", tmp_path / "out", made=replace(made, dense=(first,)))
    with pytest.raises(ExportError, match="Dense module ends with SiLU"):
        publish("xlm-roberta", tmp_path / "out", made=replace(made, dense=(first, replace(second, activation="SiLU"))))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["bert", "bert-rerank"])
def test_a_changed_weight_is_caught(name: str, precision: str, tmp_path: Path) -> None:
    model = onnx.load(str(made_of(name).graph))
    matrix = next(entry for entry in model.graph.initializer if list(entry.dims) == [16, 16])
    values = onnx.numpy_helper.to_array(matrix)
    matrix.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values[::-1]), matrix.name))
    path = tmp_path / "changed.onnx"
    onnx.save(model, str(path))
    with pytest.raises(UnprovenError):
        publish(name, tmp_path / "out", precision=precision, made=replace(made_of(name), graph=path))


def test_a_reranker_with_the_other_activation_is_caught(tmp_path: Path) -> None:
    for name, wrong in (("bert-rerank", "Identity"), ("xlm-roberta-rerank", "Sigmoid")):
        plan = plan_of(name, "fp32")
        assert plan.activation != wrong
        with pytest.raises(UnprovenError):
            publish(name, tmp_path / name, plan=replace(plan, activation=wrong))


def test_pairs_reach_the_second_segment(tmp_path: Path) -> None:
    manifest = publish("bert-rerank", tmp_path / "out")
    assert "token_type_ids" in manifest.inputs
    inputs = tokenize(tmp_path / "out", manifest, TEXTS, PAIRS)
    assert all(one.second_start is not None for one in inputs)
    encoder = Encoder(tmp_path / "out", manifest, num_threads=1)
    flat = encoder.encode([replace(one, second_start=None) for one in inputs])
    assert np.abs(flat - reference_of("bert-rerank")).max() > 1e-3


def test_dimensions_are_those_stated_and_those_asked_for(tmp_path: Path) -> None:
    plan = plan_of("bert", "fp32", dimensions=(4, 8))
    assert publish("bert", tmp_path / "out", plan=plan).dimensions == (4, 8)
    with pytest.raises(ExportError, match="has embeddings of 16 numbers: 17 cannot be cut"):
        publish("bert", tmp_path / "more", plan=plan_of("bert", "fp32", dimensions=(17,)))


def test_a_damaged_folder_is_noticed(tmp_path: Path) -> None:
    publish("bert", tmp_path / "out")
    data = tmp_path / "out" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[-5] ^= 1
    data.write_bytes(content)
    with pytest.raises(CheckFailedError, match="changed since the export"):
        check_encoder(tmp_path / "out")
    data.write_bytes(content[:-4000])
    with pytest.raises(CheckFailedError, match="truncated"):
        check_encoder(tmp_path / "out")


def test_the_manifest_is_json_that_others_can_read(tmp_path: Path) -> None:
    publish("xlm-roberta", tmp_path / "out")
    fields = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    assert (fields["kind"], fields["task"]) == ("encoder", "embeddings")
    assert fields["prompts"] == {"query": "query: ", "document": "passage: "}
    assert fields["pooling"] == "weightedmean"
    report = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert report["verified"] is True
    assert {check["passed"] for check in report["checks"]} == {True}
