"""transformers as the reference, where it is installed (`make reference`): it agrees with ours, and catches errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ortserve.export import publish
from ortserve.export.architecture import Architecture
from ortserve.export.errors import UnprovenError
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.proof.references import open_reference
from ortserve.export.recipes import planned
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.runtime.report import read_report
from tests.export.checkpoints import random_sequences
from tests.export.family_checkpoints import FOLDER, MAX_CONTEXT, assert_close, every_family

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # of these libraries, not ours


@every_family
def test_both_references_agree(family: str) -> None:
    checkpoint = open_checkpoint(FOLDER / family)
    architecture = read_architecture(checkpoint)
    sequences = random_sequences(64, (11, 7))
    streams: dict[str, dict[int, NDArray[np.float32]]] = {"ours": {}, "theirs": {}}
    found = open_reference("transformers", checkpoint, architecture).compute(sequences, streams["theirs"].__setitem__)
    expected = reference_logits(checkpoint, architecture, sequences, watch=streams["ours"].__setitem__)
    for ours, theirs in zip(expected, found, strict=True):
        assert_close(ours, theirs)
    assert list(streams["theirs"]) == list(streams["ours"])[:-1]  # transformers norms the last one
    for layer, stream in streams["theirs"].items():
        assert_close(streams["ours"][layer], stream)


@every_family
def test_an_export_is_proved_against_transformers(tmp_path: Path, family: str) -> None:
    publish.export_checkpoint(
        FOLDER / family, tmp_path / "out", precision="fp32", max_context=MAX_CONTEXT, reference="transformers"
    )
    report = read_report(tmp_path / "out")
    assert report.verified
    assert report.parity is not None
    assert report.parity.reference.startswith("transformers ")
    assert {"torch", "transformers"} <= set(report.versions)


def test_a_planted_error_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(right: Architecture) -> Architecture:
        layers = (
            replace(layer, attention=replace(layer.attention, scale=1.01 * layer.attention.scale))
            for layer in right.layers
        )
        return replace(right, layers=tuple(layers))

    monkeypatch.setattr(planned, "read_architecture", lambda checkpoint: plant(read_architecture(checkpoint)))
    with pytest.raises(UnprovenError, match="mean KL at prefill"):
        publish.export_checkpoint(
            FOLDER / "llama",
            tmp_path / "out",
            precision="fp32",
            max_context=MAX_CONTEXT,
            reference="transformers",
        )
    assert not read_report(tmp_path / "out").verified


def test_auto_takes_it(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(FOLDER / "qwen2")
    assert "eager attention" in open_reference("auto", checkpoint, read_architecture(checkpoint)).description
