"""A folder whose graph, weights or tokenizer were damaged is recognized, and one that is whole can be described."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ortserve.export.errors import CheckFailedError
from ortserve.export.inspect.inspection import describe_model, inspect_model
from ortserve.export.proof.integrity import check_integrity, model_digest
from ortserve.export.publish import export_checkpoint
from ortserve.export.toys.shapes import SHAPES
from ortserve.export.toys.toy import write_toy_checkpoint
from ortserve.runtime.errors import ManifestError
from ortserve.runtime.manifest import read_manifest


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integrity")
    write_toy_checkpoint(SHAPES["tiny"], folder / "toy")
    export_checkpoint(folder / "toy", folder / "out", precision="int8")
    return folder / "out"


def test_a_whole_folder(exported: Path) -> None:
    manifest = check_integrity(exported)
    assert manifest == read_manifest(exported)
    assert manifest.digest == model_digest(exported, manifest)
    assert manifest.weight_bytes == (exported / "model.onnx.data").stat().st_size


def test_an_export_again_has_the_same_digest(exported: Path, tmp_path: Path) -> None:
    export_checkpoint(exported.parent / "toy", tmp_path / "again", precision="int8", verify=False)
    assert read_manifest(tmp_path / "again").digest == read_manifest(exported).digest


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _flip(folder / "model.onnx.data", 5000), "changed since the export"),
        (lambda folder: _flip(folder / "tokenizer.json", 40), "changed since the export"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "changed since the export"),
        (lambda folder: (folder / "model.onnx.data").write_bytes(b"short"), "model.onnx.data is truncated"),
        (lambda folder: (folder / "model.onnx.data").unlink(), "model.onnx.data is truncated"),
        (lambda folder: (folder / "model.onnx").unlink(), r"model.onnx cannot be read \(No such file"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"\xff" * 9), "model.onnx is no ONNX graph"),
    ],
)
def test_damage_is_named(tmp_path: Path, exported: Path, damage: Callable[[Path], object], message: str) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(CheckFailedError, match=message) as caught:
        check_integrity(tmp_path / "copy")
    assert "\n" not in str(caught.value)


def test_a_folder_without_manifest_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="export the checkpoint first"):
        check_integrity(tmp_path)


def test_facts_of_a_model(exported: Path) -> None:
    facts = inspect_model(exported)
    assert facts.graph.ir_version == 10
    assert facts.graph.opsets == {"ai.onnx": 21, "com.microsoft": 1}
    assert facts.graph.operators["GroupQueryAttention"] == SHAPES["tiny"].num_layers
    assert facts.graph.operators["QGemm"] == 5 * SHAPES["tiny"].num_layers + 1
    assert facts.file_bytes["model.onnx.data"] == facts.manifest.weight_bytes
    text = describe_model(facts)
    assert "past.{layer}.key float[B, 2, C, 16]" in text
    assert "300 tokens of 320 ids" in text
    assert "proof        passed" in text


def test_a_tied_embedding_is_stored_once(exported: Path) -> None:
    shape = SHAPES["tiny"]
    matrices = shape.num_parameters - (2 * shape.num_layers + 1) * shape.hidden_size
    tables = 4 * shape.max_context * shape.head_dim
    size = (exported / "model.onnx.data").stat().st_size
    assert matrices + tables < size < 1.3 * (matrices + tables)
