"""`ortserve inspect` draws what a graph is made of, and what rounding costs layer by layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortserve.export.errors import ExportError
from ortserve.export.inspect import error_plot
from ortserve.export.inspect.inspection import inspect_model
from ortserve.export.inspect.structure import PartFacts, chart_errors, draw_parts
from ortserve.export.proof.streams import StreamRecord
from ortserve.runtime.manifest import MatrixFacts
from tests.export.checkpoints import Tiny, write_checkpoint
from tests.export.command_line import run_verb


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("structure")
    source = write_checkpoint(folder / "source", Tiny(num_layers=3, vocab_size=256, tied=False))
    assert run_verb("export", source, folder / "out", "--precision", "int8") == 0
    return folder / "out"


def test_every_byte_belongs_to_a_part(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run_verb("inspect", exported, "--json") == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    parts = facts["parts"]
    assert [part["name"] for part in parts] == ["before", "layer 0", "layer 1", "layer 2", "after"]
    assert sum(part["num_bytes"] for part in parts) > 0.8 * facts["file_bytes"]["model.onnx.data"]
    assert [matrix["name"] for matrix in parts[2]["matrices"]] == [
        f"layers.1.{name}" for name in ("qkv", "attention_output", "gate", "up", "down")
    ]
    errors = [part["error"] for part in parts]
    assert (errors[0], errors[-1]) == (None, None)
    assert all(1e-4 < error < 0.2 for error in errors[1:-1])
    assert [one["error"] for one in facts["report"]["parity"]["layers"]] == errors[1:-1]


def test_the_drawing_has_sizes_recipes_and_bars(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb("inspect", exported) == 0
    shown = capsys.readouterr().out
    for words in (
        "structure\n",
        "MB",
        "qkv",
        "attention_output",
        "lm_head",
        "layer 2 ",
        "error of the residual stream",
    ):
        assert words in shown
    assert shown.count(" ##") == 3


def test_layers_that_are_alike_are_drawn_once() -> None:
    matrix = MatrixFacts("layers.0.qkv", "int8", "token", folded=False, error=0.01)
    layers = [
        PartFacts(f"layer {place}", 100, (replace(matrix, name=f"layers.{place}.qkv"),), 0.1) for place in range(4)
    ]
    layers[3] = replace(layers[3], matrices=(replace(layers[3].matrices[0], precision="fp32"),))
    lines = list(draw_parts(tuple(layers)))
    assert "layers 0 to 2" in lines[0]
    assert lines[0].endswith("each")
    assert "layer 3" in lines[2]
    assert "fp32" in lines[3]


def test_a_bar_is_longer_for_a_larger_error() -> None:
    parts = tuple(PartFacts(f"layer {place}", 1, (), error) for place, error in enumerate((1e-3, 1e-2, 1e-1, 0.0)))
    bars = [line.count("#") for line in chart_errors(parts)][1:]
    assert bars[0] < bars[1] < bars[2]
    assert bars[3] == 1
    assert list(chart_errors((PartFacts("layer 0", 1, (), None),))) == []


def test_streams_are_compared_token_by_token() -> None:
    exact, rounded = StreamRecord(1, 2), StreamRecord(0, 2)
    exact.see(0, np.array([[9, 9], [3, 4], [0, 10]], np.float32))
    rounded.see(0, np.array([[3, 5], [0, 10]], np.float32))
    rounded.see(1, np.ones((2, 2), np.float32))  # the other has not seen it
    (found,) = rounded.errors(exact)
    assert found.layer == 0
    assert found.error == pytest.approx(np.sqrt((0.2**2 + 0) / 2))


def test_a_picture(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    assert run_verb("inspect", exported, "--plot", tmp_path / "errors.png") == 0
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ExportError, match="cannot be written"):
        run_verb("inspect", exported, "--plot", tmp_path / "missing" / "errors.png")
    monkeypatch.setattr(error_plot, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'ortserve\[plot\]'"):
        run_verb("inspect", exported, "--plot", tmp_path / "errors.png")


def test_floats_have_no_errors_to_draw(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    assert run_verb("export", source, tmp_path / "out", "--precision", "fp32") == 0
    assert all(part.error is None for part in inspect_model(tmp_path / "out").parts)
    with pytest.raises(ExportError, match="has no measured errors to draw"):
        run_verb("inspect", tmp_path / "out", "--plot", tmp_path / "errors.png")
