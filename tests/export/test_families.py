"""Every family computes what transformers computes: the reference, the graph in every shape, every precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortserve.export.architecture import Rope
from ortserve.export.families import READERS, read_architecture
from ortserve.export.families.rope_settings import read_rope
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.float_reference.rotary import frequency
from ortserve.export.graph.rope import inverse_frequencies, rotary_tables
from ortserve.export.proof.graph_run import GraphRun, RowInput
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import open_checkpoint
from tests.export.family_checkpoints import (
    BLOCK_SIZE,
    FOLDER,
    MAX_CONTEXT,
    NAMES,
    assert_close,
    copy_family,
    every_family,
    expected_logits,
)
from tests.export.proofs import proof_of

ROPES: dict[str, dict[str, Any]] = json.loads((FOLDER / "ropes.json").read_text())
every_rope = pytest.mark.parametrize("name", ROPES)


def test_every_supported_architecture_has_a_checkpoint() -> None:
    made = {name for family in NAMES for name in open_checkpoint(FOLDER / family).config["architectures"]}
    assert made == set(READERS)


@every_family
def test_the_reference_equals_transformers(family: str) -> None:
    checkpoint, expected = open_checkpoint(FOLDER / family), expected_logits(family)
    found = reference_logits(checkpoint, read_architecture(checkpoint), expected.sequences)
    for logits, wanted in zip(found, expected.logits, strict=True):
        assert_close(logits, wanted)


@every_family
def test_a_float32_graph_equals_transformers_at_prefill_decode_and_in_ragged_steps(tmp_path: Path, family: str) -> None:
    manifest = export_checkpoint(
        FOLDER / family, tmp_path / "out", precision="fp32", max_context=MAX_CONTEXT, verify=False
    )
    expected = expected_logits(family)
    first, second = expected.sequences
    run = GraphRun(tmp_path / "out", manifest, num_rows=3, capacity=64)
    whole = ((len(first), len(second)),)
    one_by_one = ((1, 1),)
    ragged = ((6, 0), (1, 3), (1, 1), (0, 1), (5, 2))
    for pattern in (whole, one_by_one, ragged):
        done, found = [0, 0], [[np.empty((0, manifest.vocab_size), np.float32)] for _ in range(2)]
        while done != [len(first), len(second)]:
            for lengths in pattern:
                parts = [
                    tokens[fed : fed + length]
                    for tokens, fed, length in zip((first, second), done, lengths, strict=True)
                ]
                if not any(parts):
                    continue
                # the idle row between them must not matter
                rows = [RowInput(parts[0], done[0]), RowInput([], 0), RowInput(parts[1], done[1])]
                logits = run.run(rows)
                for index, part in enumerate(parts):
                    found[index].append(logits[2 * index])
                    done[index] += len(part)
        for pieces, wanted in zip(found, expected.logits, strict=True):
            assert_close(np.concatenate(pieces), wanted)


@every_family
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_every_precision_passes_its_proof(tmp_path: Path, family: str, precision: str) -> None:
    manifest = export_checkpoint(
        copy_family(family, tmp_path / "source"),
        tmp_path / "out",
        precision=precision,
        block_size=BLOCK_SIZE if precision == "int4" else None,
        max_context=MAX_CONTEXT,
        progress=False,
    )
    proof = proof_of(tmp_path / "out")
    assert proof.passed
    if precision == "fp32":
        assert max(case.max_abs_error for case in proof.cases) < 3e-5
    checkpoint = open_checkpoint(FOLDER / family)
    assert manifest.num_parameters == sum(int(np.prod(stored.shape)) for stored in checkpoint.tensors.values())


@every_family
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_has_the_same_bits_alone_and_beside_others(tmp_path: Path, family: str, precision: str) -> None:
    """With two query tokens or more in every row; one token takes another attention kernel."""
    manifest = export_checkpoint(
        FOLDER / family, tmp_path / "out", precision=precision, max_context=MAX_CONTEXT, verify=False
    )
    sequences = expected_logits(family).sequences
    alone = GraphRun(tmp_path / "out", manifest, num_rows=1, capacity=64)
    together = GraphRun(tmp_path / "out", manifest, num_rows=3, capacity=64)
    batch = together.run([RowInput(tokens, 0) for tokens in (*sequences, [])])
    for tokens, logits in zip(sequences, batch, strict=False):
        np.testing.assert_array_equal(alone.run([RowInput(tokens, 0)])[0], logits)


@every_family
def test_both_spellings_describe_the_same_architecture(tmp_path: Path, family: str) -> None:
    newer = open_checkpoint(FOLDER / family)
    older = copy_family(family, tmp_path / "older")
    (older / "config4.json").replace(older / "config.json")
    assert "rope_parameters" in newer.config
    assert "rope_theta" in open_checkpoint(older).config
    assert read_architecture(open_checkpoint(older)) == read_architecture(newer)


def _rope(settings: dict[str, Any]) -> Rope:
    return read_rope({"rope_parameters": settings}, head_dim=32, max_context=16384)


@every_rope
def test_frequencies_are_those_of_transformers(name: str) -> None:
    found = ROPES[name]
    rope = _rope(found["settings"])
    wanted = np.array(found["frequencies"])
    np.testing.assert_allclose(inverse_frequencies(rope), wanted, rtol=2e-6)
    np.testing.assert_allclose([frequency(rope, pair) for pair in range(len(wanted))], wanted, rtol=2e-6)
    assert rope.attention_factor == pytest.approx(found["attention_factor"])
    cosine, sine = rotary_tables(rope, 8)
    np.testing.assert_allclose(cosine[3], np.cos(3 * wanted) * rope.attention_factor, atol=2e-6)
    np.testing.assert_allclose(sine[3], np.sin(3 * wanted) * rope.attention_factor, atol=2e-6)


@every_rope
def test_the_older_spelling_of_rope_settings_is_the_same(name: str) -> None:
    settings = {**ROPES[name]["settings"]}
    older = {"rope_theta": settings.pop("rope_theta"), "rope_scaling": settings}
    settings["type"] = settings.pop("rope_type")
    assert read_rope(older, head_dim=32, max_context=16384) == _rope(ROPES[name]["settings"])


def test_gemma_scales_embeddings_as_its_dtype_rounds(tmp_path: Path) -> None:
    import ml_dtypes
    from safetensors.numpy import load_file, save_file

    source = copy_family("gemma3", tmp_path / "source")
    scales = {}
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        tensors = load_file(source / "model.safetensors")
        save_file({name: value.astype(dtype) for name, value in tensors.items()}, source / "model.safetensors")
        scales[np.dtype(dtype).name] = read_architecture(open_checkpoint(source)).embedding_scale
    assert scales == {"float32": float(np.float32(24**0.5)), "float16": 4.8984375, "bfloat16": 4.90625}
