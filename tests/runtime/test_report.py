"""`report.json`: a folder is what was proved, and every change since is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ortserve.runtime import report as report_module
from ortserve.runtime.errors import ReportError
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.report import (
    REPORT_NAME,
    FileFacts,
    find_doubts,
    is_verified,
    list_files,
    read_report,
    report_json,
    sample_file,
)
from ortserve.runtime.testing import write_synthetic_model
from tests.verified import write_test_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_synthetic_model(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    write_test_report(tmp_path / "model")
    return tmp_path / "model"


def _doubts(folder: Path, *, thorough: bool = False) -> list[str]:
    return find_doubts(folder, digest=read_manifest(folder).digest, thorough=thorough)


def _change(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / REPORT_NAME).read_text())
        (folder / REPORT_NAME).write_text(json.dumps({**content, **fields}))

    return change


def _write(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return write


def test_what_is_written_is_read_back(folder: Path) -> None:
    report = read_report(folder)
    assert report_json(report) == (folder / REPORT_NAME).read_bytes()
    assert [file.name for file in report.files] == ["manifest.json", "model.onnx", "tokenizer.json"]
    assert is_verified(folder)
    assert _doubts(folder) == _doubts(folder, thorough=True) == []


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        (lambda folder: (folder / REPORT_NAME).unlink(), "has no report.json: nothing says that it was proved"),
        (_write(REPORT_NAME, "{"), "report.json cannot be read"),
        (_change(report_version=99), "report.json has version 99, this ortserve reads 1"),
        (_change(verified=False, findings=["mean KL 0.5 (limit 0.03)"]), "mean KL 0.5 (limit 0.03)"),
        (_change(verified=False), "report.json says so"),
        (_change(digest="another"), "report.json belongs to another export"),
        (_change(files=[]), "report.json does not name manifest.json"),
        (_write("tokenizer.json", "{ }"), "tokenizer.json has 3 bytes, and 2 were proved"),
        (_write("tokenizer.json", "[]"), "tokenizer.json changed since it was proved"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (_write("chat_template.jinja", ""), "chat_template.jinja was added since it was proved"),
        (_write("additional_chat_templates/tool_use.jinja", ""), "tool_use.jinja was added since it was proved"),
    ],
)
def test_every_doubt_has_its_words(folder: Path, change: Callable[[Path], object], doubt: str) -> None:
    change(folder)
    assert doubt in _doubts(folder)[0]
    assert "\n" not in "".join(_doubts(folder))


def test_files_that_nobody_reads_change_nothing(folder: Path) -> None:
    for name in ("README.md", "notes.txt", ".hidden"):
        (folder / name).write_text("mine")
    assert _doubts(folder, thorough=True) == []


def test_a_large_file_is_sampled_at_a_start_and_read_by_verify(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "SMALL_FILE", 1 << 20)
    weights = folder / "model.onnx.data"
    content = bytearray(8 << 20)
    weights.write_bytes(content)
    write_test_report(folder)
    content[(4 << 20) + 7] = 1
    weights.write_bytes(content)
    assert _doubts(folder) == []  # between two of the pages that are looked at
    assert _doubts(folder, thorough=True) == ["model.onnx.data changed since it was proved"]
    weights.write_bytes(bytes([1]) * len(content))  # the weights of another checkpoint of the same shape
    assert _doubts(folder) == ["model.onnx.data changed since it was proved"]


def test_samples_tell_sizes_and_ends_apart(tmp_path: Path) -> None:
    contents = [b"", b"a", b"ab", bytes(5000), bytes(4999) + b"a", bytes(9000)]
    samples = set()
    for place, content in enumerate(contents):
        path = tmp_path / str(place)
        path.write_bytes(content)
        samples.add(sample_file(path))
    assert len(samples) == len(contents)


def test_known_sums_are_not_computed_again(folder: Path) -> None:
    listed = list_files(folder, {"model.onnx": "known"})
    assert FileFacts("tokenizer.json", 2, listed[2].sha256) == listed[2]
    assert listed[1].sha256 == "known"


def test_a_report_that_is_no_report_is_named(folder: Path) -> None:
    (folder / REPORT_NAME).write_text("[]")
    with pytest.raises(ReportError, match=r"report\.json cannot be read"):
        read_report(folder)
    assert not is_verified(folder)
