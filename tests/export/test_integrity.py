"""A folder whose graph, weights or tokenizer were damaged is recognized, and one that is whole can be described."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ortserve.export.errors import CheckFailedError
from ortserve.export.inspect.inspection import describe_model, inspect_model
from ortserve.export.proof.integrity import check_integrity, model_digest
from ortserve.export.publish import export_checkpoint
from ortserve.export.toys.shapes import SHAPES
from ortserve.export.toys.toy import write_toy_checkpoint
from ortserve.export.verifying import verify_folder
from ortserve.runtime.errors import ManifestError
from ortserve.runtime.manifest import manifest_json, read_manifest
from ortserve.runtime.report import find_doubts


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


def _claim(folder: Path, **changes: Any) -> None:
    """Write another layout of the cache into the manifest."""
    manifest = read_manifest(folder)
    changed = replace(manifest, kv=replace(manifest.kv, **changes))
    (folder / "manifest.json").write_bytes(manifest_json(changed))


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
        (lambda folder: _claim(folder, num_layers=7), r"model.onnx cannot be run as manifest.json says \("),
        (lambda folder: _claim(folder, head_dim=7), r"model.onnx cannot be run as manifest.json says \("),
        (lambda folder: _claim(folder, num_kv_heads=0), r"model.onnx cannot be run as manifest.json says \("),
    ],
)
def test_damage_is_named(tmp_path: Path, exported: Path, damage: Callable[[Path], object], message: str) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(CheckFailedError, match=message) as caught:
        check_integrity(tmp_path / "copy")
    assert "\n" not in str(caught.value)


def test_a_change_since_the_proof_is_told_once_by_everyone(tmp_path: Path, exported: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    assert "UNVERIFIED" not in describe_model(inspect_model(folder))
    _claim(folder, page_size=1)
    (told,) = find_doubts(folder, digest=read_manifest(folder).digest)
    assert "manifest.json" in told
    shown = describe_model(inspect_model(folder)).splitlines()
    assert shown[-2:] == ["verdict      verified", f"since then   UNVERIFIED: {told}"]
    assert not verify_folder(folder, None).verified
    assert find_doubts(folder, digest=read_manifest(folder).digest) == [told], "not once more by the report"


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
