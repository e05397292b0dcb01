"""Outliers that ruin plain rounding do not ruin what is exported by default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ortserve.export.bundled import bundled_model
from ortserve.export.errors import UnprovenError
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes.precisions import Device
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.export.texts.proof_text import bundled_documents, document_tokens
from tests.export.outlier_twin import MASSIVE, write_outlier_twin
from tests.export.proofs import proof_of


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_outlier_twin(tmp_path_factory.mktemp("twin") / "source")


def test_the_twin_is_the_same_function(twin: Path) -> None:
    source, other = open_checkpoint(bundled_model()), open_checkpoint(twin)
    architecture = read_architecture(source)
    documents = bundled_documents("held_out")
    tokens = document_tokens(source, architecture.vocab_size, documents, max_tokens=200, max_length=40)
    expected = reference_logits(source, architecture, tokens)
    found = reference_logits(other, read_architecture(other), tokens)
    for one, two in zip(expected, found, strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("precision", "device"), [("int8", "cpu"), ("int4", "cuda")])
def test_plain_rounding_fails_its_proof(tmp_path: Path, twin: Path, precision: str, device: Device) -> None:
    with pytest.raises(UnprovenError, match="differs from the reference"):
        export_checkpoint(
            twin, tmp_path / "out", precision=precision, device=device, activations="token", progress=False
        )


@pytest.mark.parametrize(("precision", "device"), [("int8", "cpu"), ("int4", "cpu"), ("int4", "cuda")])
def test_what_is_exported_by_default_passes(tmp_path: Path, twin: Path, precision: str, device: Device) -> None:
    """In blocks of 128 on the CPU, of 32 on CUDA."""
    export_checkpoint(twin, tmp_path / "out", precision=precision, device=device, progress=False)
    proof = proof_of(tmp_path / "out")
    assert proof.passed
    assert proof.perplexity is not None
    assert proof.perplexity.ratio <= (1.01 if precision == "int8" else 1.04)


def test_first_tokens_are_massive_and_others_are_not(twin: Path) -> None:
    from ortserve.export.architecture import Linear
    from ortserve.export.float_reference.forward import CheckpointWeights, Floats, final_states

    checkpoint = open_checkpoint(twin)
    architecture = read_architecture(checkpoint)
    unit = read_architecture(open_checkpoint(bundled_model())).intermediate_size
    seen: list[Floats] = []

    class Watching(CheckpointWeights):
        def multiply(self, linear: Linear, value: Floats) -> Floats:
            if linear is architecture.layers[2].mlps[0].down:
                seen.append(np.abs(value[:, unit]))
            return super().multiply(linear, value)

    documents = bundled_documents("held_out")
    tokens = document_tokens(checkpoint, architecture.vocab_size, documents, max_tokens=600, max_length=40)
    final_states(Watching(checkpoint), architecture, tokens)
    firsts = np.cumsum([0, *(len(sequence) for sequence in tokens[:-1])])
    (massive,) = seen
    assert np.median(massive[firsts]) > MASSIVE / 4
    assert np.median(np.delete(massive, firsts)) < 1
