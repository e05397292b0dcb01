"""Ctrl-C leaves no half-written folder, and the same command goes on from what was finished, with the same result."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ortserve.export import publish
from ortserve.export.families import read_architecture
from ortserve.export.folder.journal import Journal, Unit
from ortserve.export.folder.unfinished import unfinished_folder
from ortserve.export.graph import data_file, matrix
from ortserve.export.graph.builder import GraphBuilder
from ortserve.export.progress import _Lines
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes.calibration_file import load_calibration, save_calibration
from ortserve.export.recipes.digest import digest_of
from ortserve.export.recipes.layer_plan import MatrixPlan
from ortserve.export.recipes.sensitivity import measure_options
from ortserve.export.sources.checkpoint import Checkpoint, open_checkpoint
from ortserve.runtime.report import is_verified
from tests.export.checkpoints import Tiny, write_checkpoint

STORE = matrix._store_matrix


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("unfinished") / "source", Tiny(biases=True))


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the matrices that are computed."""
    names: list[str] = []

    def store(graph: GraphBuilder, plan: MatrixPlan, checkpoint: Checkpoint) -> None:
        names.append(plan.name)
        STORE(graph, plan, checkpoint)

    monkeypatch.setattr(matrix, "_store_matrix", store)
    return names


def _left(folder: Path) -> list[Path]:
    return sorted(folder.glob(".out.*"))


def _interrupt_at(name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ctrl-C while that matrix is written; call the result to go on without."""
    write = data_file.DataFile.append

    def append(self: data_file.DataFile, tensor: str, *rest: Any) -> Any:
        if tensor == f"{name}.scale":  # its weights are in the file already
            raise KeyboardInterrupt
        return write(self, tensor, *rest)

    monkeypatch.setattr(data_file.DataFile, "append", append)
    return lambda: monkeypatch.setattr(data_file.DataFile, "append", write)


def _must_not_run(*_: Any, **__: Any) -> Any:
    raise AssertionError("this was finished before the interrupt")


def _export(source: Path, out: Path, **options: Any) -> bytes:
    export_checkpoint(source, out, **{"precision": "int8", "progress": False, **options})
    return (out / "model.onnx.data").read_bytes()


def test_a_rerun_goes_on_from_what_was_finished(
    source: Path, tmp_path: Path, stored: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _export(source, tmp_path / "whole")
    every = list(stored)
    stored.clear()
    go_on = _interrupt_at("layers.1.gate", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (left,) = _left(tmp_path)
    assert f"the same command goes on from {left}" in capsys.readouterr().err
    before = stored[:-1]
    assert stored[-1] == "layers.1.gate"
    stored.clear()
    go_on()
    monkeypatch.setattr(publish, "measure_options", _must_not_run)
    assert _export(source, tmp_path / "out") == whole
    assert stored == every[len(before) :]
    assert is_verified(tmp_path / "out")
    for name in ("model.onnx", "manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert _left(tmp_path) == []


def test_an_interrupted_proof_computes_no_matrix_again(
    source: Path, tmp_path: Path, stored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, "check_parity", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _export(source, tmp_path / "out")
    stored.clear()
    _export(source, tmp_path / "out")
    assert stored == []
    assert is_verified(tmp_path / "out")


def test_what_was_damaged_meanwhile_is_computed_again(
    source: Path, tmp_path: Path, stored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _export(source, tmp_path / "whole")
    go_on = _interrupt_at("layers.1.gate", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _export(source, tmp_path / "out")
    (left,) = _left(tmp_path)
    data = left / "model" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    stored.clear()
    go_on()
    assert _export(source, tmp_path / "out") == whole
    assert "layers.1.qkv" in stored
    assert "embedding" not in stored


@pytest.mark.parametrize("change", [{"precision": "int4"}, {"max_context": 50}, {"activations": "token"}])
def test_other_options_begin_anew_and_remove_what_is_stale(
    source: Path, tmp_path: Path, stored: list[str], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    go_on = _interrupt_at("layers.1.gate", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _export(source, tmp_path / "out")
    stored.clear()
    go_on()
    _export(source, tmp_path / "out", **change)
    assert stored[0] == "embedding"
    assert _left(tmp_path) == []


def test_nothing_is_kept_of_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        unfinished_folder(tmp_path / "out", key="k", force=False, marker="m"),
    ):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        unfinished_folder(tmp_path / "out", key="k", force=False, marker="m") as one,
        unfinished_folder(tmp_path / "out", key="k", force=True, marker="m") as two,
    ):
        assert one.model != two.model
        (two.model / "m").write_text("two")
        with (one.model.parent / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert _left(tmp_path) == []


def test_a_line_that_was_cut_off_ends_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, "plan")
    for place in range(3):
        journal.add(Unit(str(place), place, place + 1, "", (b"",)))
    path.write_bytes(path.read_bytes()[:-9])
    again = Journal(path, "plan")
    assert again.num_units == 2
    again.add(Unit("2", 2, 3, "", (b"",)))
    assert Journal(path, "plan").num_units == 3
    assert Journal(path, "another plan").num_units == 0


def test_calibration_is_read_back_as_it_was(source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source)
    architecture = read_architecture(checkpoint)
    measured = measure_options(checkpoint, architecture, precision="int4", block_size=16)
    save_calibration(tmp_path / "kept.npz", measured)
    kept = load_calibration(tmp_path / "kept.npz", architecture)
    assert digest_of(kept) == digest_of(measured)
    (tmp_path / "kept.npz").write_bytes(b"damaged")
    assert load_calibration(tmp_path / "kept.npz", architecture) is None


def test_lines_tell_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter((0.0, 5.0, 10.0, 12.0))
    lines = _Lines("export x", 100_000_000, "bytes", clock=lambda: next(times))
    for _ in range(3):
        lines.advance(20_000_000)
    assert capsys.readouterr().err == "export x: 40.0 of 100.0 MB, 4.0 MB/s, 15 s left\n"
