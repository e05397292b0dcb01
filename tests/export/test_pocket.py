"""The bundled checkpoints export, are proved, and share what a drafter must share with its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ortserve.export.cli import bundled_draft, bundled_model
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.proof.verify import proof_sequences
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.export.toys.shapes import SHAPES
from ortserve.export.toys.widen import widen_checkpoint
from ortserve.runtime.manifest import Manifest, read_manifest
from ortserve.runtime.report import find_doubts, read_report
from tests.bench.perplexity import kinds_of_text, measure
from tests.export.proofs import proof_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pocket")
    export_checkpoint(bundled_model(), folder / "model", precision="int8")
    export_checkpoint(bundled_draft(), folder / "draft", precision="int8")
    return folder / "model", folder / "draft"


@pytest.fixture(scope="module")
def manifests(folders: tuple[Path, Path]) -> tuple[Manifest, Manifest]:
    return read_manifest(folders[0]), read_manifest(folders[1])


def test_both_are_proved_in_int8(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        assert proof_of(folder).passed
        assert find_doubts(folder, digest=read_manifest(folder).digest, thorough=True) == []
        assert read_report(folder).license == "mit"


def test_rounding_costs_little_perplexity(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """One percent in int8 and four in int4 with blocks of 32, whatever the limits of proofs may become."""
    by_default = proof_of(folders[0]).perplexity
    assert by_default is not None
    assert by_default.ratio <= 1.01
    source = open_checkpoint(bundled_model())
    vocab_size = read_architecture(source).vocab_size
    known = {"known": kinds_of_text(source, vocab_size, max_tokens=600)["conversations"]}
    quality = measure(source, known, ["int4-32-token"], tmp_path)["int4-32-token"]["known"]  # not calibrated: coarser
    assert quality.num_tokens > 500
    assert quality.reference < 4  # of text that a model does not know a ratio says nothing
    assert -0.04 <= quality.increase <= 0.04


def test_model_and_draft_speak_the_same_ids(manifests: tuple[Manifest, Manifest]) -> None:
    model, draft = manifests
    assert model.num_tokens == draft.num_tokens
    assert model.eos_token_ids == draft.eos_token_ids != ()
    assert model.num_parameters > 3 * draft.num_parameters


def test_the_pocket_widens_without_changing_its_logits(tmp_path: Path, manifests: tuple[Manifest, Manifest]) -> None:
    """Hidden size, heads and layers as at the 0.5B shape's ratio, small enough for a test."""
    source = open_checkpoint(bundled_model())
    old = read_architecture(source)
    shape = replace(
        SHAPES["qwen2.5-0.5b"],
        hidden_size=320,
        intermediate_size=old.intermediate_size + 64,
        num_layers=len(old.layers) + 1,
        vocab_size=old.vocab_size + 256,
    )
    widen_checkpoint(bundled_model(), tmp_path / "wide", shape)
    wide = open_checkpoint(tmp_path / "wide")
    sequences = proof_sequences(source, manifests[0], num_positions=24)
    for expected, found in zip(
        reference_logits(source, old, sequences),
        reference_logits(wide, read_architecture(wide), sequences),
        strict=True,
    ):
        np.testing.assert_allclose(
            found[:, : old.vocab_size], expected, rtol=0, atol=1e-4 * float(np.abs(expected).max())
        )
