"""A widened checkpoint computes what its source computes, at every mapping of heads and in int8 too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture, Norm
from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.proof.graph_run import GraphRun, RowInput
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.export.toys.shapes import SHAPES, Shape
from ortserve.export.toys.widen import head_places, widen_checkpoint
from tests.export.checkpoints import LLAMA3, Tiny, random_sequences, write_checkpoint, write_tokenizer
from tests.export.proofs import proof_of

WORDS = [chr(0x100 + index) for index in range(Tiny().vocab_size)]
LARGE = Shape(
    hidden_size=80,
    intermediate_size=112,
    num_layers=4,
    num_heads=14,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=160,
    num_tokens=160,
    max_context=64,
    rope_theta=1.0,
    norm_epsilon=1.0,
)
SEQUENCES = random_sequences(Tiny().vocab_size, (17, 9))


def _source(folder: Path, tiny: Tiny) -> Path:
    source = write_checkpoint(folder, tiny)
    write_tokenizer(source, WORDS, {"eos_token": WORDS[1]})
    return source


def _logits(folder: Path) -> list[NDArray[np.float32]]:
    checkpoint = open_checkpoint(folder)
    return reference_logits(checkpoint, read_architecture(checkpoint), SEQUENCES)


@pytest.mark.parametrize(
    ("tiny", "shape"),
    [
        (Tiny(), LARGE),
        (Tiny(num_heads=6, num_kv_heads=2), replace(LARGE, num_heads=8, num_kv_heads=4)),
        (Tiny(num_heads=4, num_kv_heads=4), replace(LARGE, num_heads=32, num_kv_heads=8)),
        (Tiny(num_heads=4, num_kv_heads=1), replace(LARGE, num_heads=4, num_kv_heads=4)),
        (Tiny(dtype="BF16", config={"rope_scaling": LLAMA3}), LARGE),
        (Tiny(architecture="MistralForCausalLM", config={"sliding_window": 4}), LARGE),
        (Tiny(), replace(LARGE, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, vocab_size=72)),
    ],
    ids=["wider groups", "split groups", "more groups", "copied keys", "bf16 llama3", "window", "same size"],
)
def test_logits_equal_the_sources(tmp_path: Path, tiny: Tiny, shape: Shape) -> None:
    source = _source(tmp_path / "source", tiny)
    widen_checkpoint(source, tmp_path / "wide", shape)
    for expected, found in zip(_logits(source), _logits(tmp_path / "wide"), strict=True):
        assert found.shape == (len(expected), shape.vocab_size)
        error = np.abs(found[:, : tiny.vocab_size] - expected).max()
        assert error <= 1e-5 * np.abs(expected).max()
        assert not found[:, tiny.vocab_size :].any()  # added ids: exactly zero, and masked by num_tokens


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_exports_of_both_choose_the_same_tokens(tmp_path: Path, precision: str) -> None:
    source = _source(tmp_path / "source", Tiny(dtype="BF16"))
    widen_checkpoint(source, tmp_path / "wide", LARGE)
    found = []
    for name in ("source", "wide"):
        out = tmp_path / f"{name}-out"
        manifest = export_checkpoint(tmp_path / name, out, precision=precision, activations="token")
        assert proof_of(out).passed
        assert manifest.num_tokens == Tiny().vocab_size
        run = GraphRun(tmp_path / f"{name}-out", manifest, num_rows=1, capacity=40)
        (logits,) = run.run([RowInput(SEQUENCES[0], 0)])
        found.append(logits[:, : Tiny().vocab_size])
    # int8: added channels are zeros, so codes and scales are the source's; only a rounding may fall the other way
    tolerance = (1e-5 if precision == "fp32" else 2e-2) * np.abs(found[0]).max()
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=tolerance)


@settings(max_examples=200, deadline=None)
@given(
    old_groups=st.integers(1, 4), old_size=st.integers(1, 8), new_groups=st.integers(1, 8), new_size=st.integers(1, 8)
)
def test_every_query_head_finds_its_own_keys(old_groups: int, old_size: int, new_groups: int, new_size: int) -> None:
    tiny = Tiny(num_heads=old_groups * old_size, num_kv_heads=old_groups)
    architecture = _architecture(tiny)
    shape = replace(LARGE, num_heads=new_groups * new_size, num_kv_heads=new_groups)
    fits = old_groups * -(-old_size // new_size) <= new_groups
    if not fits:
        with pytest.raises(ExportError, match="do not fit into"):
            head_places(architecture, shape)
        return
    query, key_value = head_places(architecture, shape)
    assert sorted(query[query >= 0]) == list(range(tiny.num_heads))
    for place, head in enumerate(query):
        if head >= 0:
            assert key_value[place // new_size] == head // old_size


def _architecture(tiny: Tiny) -> Architecture:
    final_norm = Norm("n", 32, 1e-5)
    return Architecture(
        "llama", 32, 48, tiny.num_heads, tiny.num_kv_heads, 16, 72, 96, "e", (), final_norm, "e"
    )  # fmt: skip


def test_context_may_exceed_the_trained_one(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", Tiny())
    widen_checkpoint(source, tmp_path / "wide", LARGE, max_context=8192)
    assert read_architecture(open_checkpoint(tmp_path / "wide")).max_context == 8192


@pytest.mark.parametrize(
    ("tiny", "shape", "message"),
    [
        (Tiny(), replace(LARGE, hidden_size=16), "hidden size 32 exceeds the shape's 16"),
        (Tiny(), replace(LARGE, num_layers=1), "layers 2 exceeds the shape's 1"),
        (Tiny(), replace(LARGE, head_dim=64), "heads of 16 do not become heads of 64"),
        (Tiny(), replace(LARGE, num_heads=2), "do not fit into"),
        (Tiny(tied=False), LARGE, "tied embeddings without biases"),
        (Tiny(biases=True), LARGE, "tied embeddings without biases"),
    ],
)
def test_a_source_that_does_not_fit_is_one_line(tmp_path: Path, tiny: Tiny, shape: Shape, message: str) -> None:
    source = _source(tmp_path / "source", tiny)
    with pytest.raises(ExportError, match=message):
        widen_checkpoint(source, tmp_path / "wide", shape)
    assert not (tmp_path / "wide").exists()


def test_without_a_tokenizer_nothing_would_mask_the_added_ids(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    with pytest.raises(ExportError, match="nothing would keep the added ids from being drawn"):
        widen_checkpoint(source, tmp_path / "wide", LARGE)


def test_the_pocket_fits_the_shape_it_is_shown_at() -> None:
    pocket = replace(SHAPES["tiny"], num_heads=4, num_kv_heads=2, head_dim=64)
    architecture = _architecture(Tiny(num_heads=pocket.num_heads, num_kv_heads=pocket.num_kv_heads))
    query, _ = head_places(architecture, SHAPES["qwen2.5-0.5b"])
    assert [int(place) for place in np.flatnonzero(query >= 0)] == [0, 1, 7, 8]
