"""Which reference a proof takes, and what it says of the choice. transformers itself is not needed here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortserve.export.architecture import Architecture
from ortserve.export.errors import ExportError, UnreadableError
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.proof import references
from ortserve.export.proof.references import NUMPY, open_reference
from ortserve.export.sources.checkpoint import Checkpoint, open_checkpoint
from ortserve.runtime.host.machine import MemoryFacts
from tests.export.checkpoints import write_checkpoint
from tests.export.command_line import run_verb


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Only these libraries can be found."""

    def only(*names: str) -> None:
        monkeypatch.setattr(references, "find_spec", lambda name: util.find_spec("json") if name in names else None)

    return only


def _open(folder: Path) -> tuple[Checkpoint, Architecture]:
    checkpoint = open_checkpoint(write_checkpoint(folder / "source"))
    return checkpoint, read_architecture(checkpoint)


def test_numpy_is_taken_where_transformers_is_missing(tmp_path: Path, installed: Callable[..., None]) -> None:
    installed("torch")
    checkpoint, architecture = _open(tmp_path)
    found = open_reference("auto", checkpoint, architecture)
    assert found.description == NUMPY
    (logits,) = found.compute([[1, 2, 3]], None)
    np.testing.assert_array_equal(logits, reference_logits(checkpoint, architecture, [[1, 2, 3]])[0])
    with pytest.raises(ExportError, match=r"needs transformers: pip install 'ortserve\[reference\]'"):
        open_reference("transformers", checkpoint, architecture)


def test_what_transformers_cannot_read_is_said(
    tmp_path: Path, installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("torch", "transformers")
    checkpoint, architecture = _open(tmp_path)
    little = MemoryFacts(total=1 << 30, available=1000, cgroup_limit=None)
    monkeypatch.setattr(references, "memory_budget", lambda _: little)
    assert "0.0 GB are free)" in open_reference("auto", checkpoint, architecture).description
    with pytest.raises(UnreadableError, match="GB are free"):
        open_reference("transformers", checkpoint, architecture)
    adapted = replace(checkpoint, adapter=object())  # type: ignore[arg-type]
    assert "with peft, which is not installed)" in open_reference("auto", adapted, architecture).description
    assert open_reference("numpy", checkpoint, architecture).description == NUMPY


def test_the_report_names_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_checkpoint(tmp_path / "source")
    assert run_verb("export", source, tmp_path / "out", "--precision", "fp32", "--reference", "numpy", "--json") == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed["report"]["parity"]["reference"] == NUMPY
    assert f"Reference: {NUMPY}." in (tmp_path / "out" / "README.md").read_text()
