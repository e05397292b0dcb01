"""`manifest.json`: what is written is read back, and every damage is one line with a remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ortserve.runtime.errors import ManifestError
from ortserve.runtime.manifest import (
    MANIFEST_NAME,
    GenerationDefaults,
    Manifest,
    manifest_json,
    read_manifest,
)
from tests.runtime.synthetic import SyntheticModel


@pytest.fixture
def full(synthetic: SyntheticModel) -> Manifest:
    """A manifest in which every field says something."""
    return replace(
        synthetic.manifest,
        bos_token_id=1,
        add_bos=True,
        eos_token_ids=(2, 3),
        generation=GenerationDefaults(0.7, 0.9, 40, 1.1),
        source="example/model",
        exporter="ortserve 0",
    )


def written(folder: Path, manifest: Manifest, **changes: Any) -> Path:
    """The folder, its manifest with some values replaced (`...` removes one)."""
    content = {**json.loads(manifest_json(manifest)), **changes}
    (folder / MANIFEST_NAME).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return folder


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(ManifestError) as error:
        read_manifest(folder)
    message = str(error.value)
    assert "\n" not in message
    assert "export" in message or "check" in message, "no remedy"
    for word in (str(folder), *words):
        assert word in message


def test_what_is_written_is_read_back(tmp_path: Path, full: Manifest) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(manifest_json(full))
    assert read_manifest(tmp_path) == full
    assert manifest_json(read_manifest(tmp_path)) == manifest_json(full)


def test_the_file_is_for_people_too(full: Manifest) -> None:
    text = manifest_json(full).decode()
    assert text.startswith('{\n  "format_version": 1,\n  "name": "synthetic",\n')
    assert text.endswith("}\n")


def test_what_has_a_default_may_be_missing(tmp_path: Path, full: Manifest) -> None:
    folder = written(tmp_path, full, generation=..., source=..., exporter=...)
    expected = replace(full, generation=GenerationDefaults(), source="", exporter="")
    assert read_manifest(folder) == expected


def test_a_field_of_a_later_writer_is_passed_over(tmp_path: Path, full: Manifest) -> None:
    assert read_manifest(written(tmp_path, full, invented_later=[1])) == full


def test_a_folder_without_a_manifest_says_how_to_export(tmp_path: Path) -> None:
    assert_refused(tmp_path, "has no manifest.json", "ortserve export SRC DST")
    assert_refused(tmp_path / "missing", "has no manifest.json")


def test_a_path_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).mkdir()
    assert_refused(tmp_path, "Is a directory")
    (tmp_path / "file").touch()
    assert_refused(tmp_path / "file", "Not a directory")


def test_every_truncation_is_refused(tmp_path: Path, full: Manifest) -> None:
    data = manifest_json(full)
    for length in range(0, len(data) - 2, 7):
        (tmp_path / MANIFEST_NAME).write_bytes(data[:length])
        assert_refused(tmp_path)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"[]", b"null", b"3", b'{"name": "x"}', b'{"format_version": "1"}']
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    assert_refused(tmp_path, "is not a manifest", "export the checkpoint again")


@pytest.mark.parametrize("version", [0, 2, 99, -1])
def test_another_format_version_is_named_before_anything_else_is_read(
    tmp_path: Path, full: Manifest, version: int
) -> None:
    folder = written(tmp_path, full, format_version=version, kv="of another shape")
    assert_refused(folder, f"format version {version}", "reads 1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", "many"),
        ("vocab_size", 1.5),
        ("vocab_size", None),
        ("eos_token_ids", 2),
        ("eos_token_ids", ["</s>"]),
        ("add_bos", "yes"),
        ("kv", {}),
        ("kv", {"kind": "heaps", "num_layers": 1, "num_kv_heads": 1, "head_dim": 8, "dtype": "float32"}),
        ("kv", {"kind": "slots", "num_layers": 1, "num_kv_heads": 1, "head_dim": 8, "dtype": "float8"}),
        ("generation", {"temperature": "hot"}),
        ("rotary_regimes", [{"max_tokens": "many"}]),
        ("graph", ...),
        ("num_tokens", ...),
    ],
)
def test_wrong_types_and_missing_fields_are_named(tmp_path: Path, full: Manifest, name: str, value: object) -> None:
    assert_refused(written(tmp_path, full, **{name: value}), "is damaged", name, "export the checkpoint again")
