"""Exports stream: what they hold at once does not grow with the checkpoint."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.export.toys.shapes import SHAPES
from ortserve.export.toys.toy import write_toy_checkpoint
from ortserve.export.toys.widen import widen_checkpoint

# 64 MB as float32 in the embedding; the layers stay small, so that the test does
SHAPE = replace(SHAPES["tiny"], hidden_size=256, vocab_size=65536, num_layers=1)
LARGEST_BYTES = 4 * SHAPE.hidden_size * SHAPE.vocab_size


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()  # NumPy reports its buffers too
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "source"
    assert _peak(lambda: write_toy_checkpoint(SHAPE, folder)) < LARGEST_BYTES / 2
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_an_export_stays_below_one_and_a_half_times_its_largest_tensor(
    tmp_path: Path, source: Path, precision: str
) -> None:
    peak = _peak(lambda: export_checkpoint(source, tmp_path / "out", precision=precision, verify=False))
    assert peak < 1.5 * LARGEST_BYTES


def test_the_reference_holds_slices_of_the_output_matrix(source: Path) -> None:
    checkpoint = open_checkpoint(source)
    architecture = read_architecture(checkpoint)
    assert _peak(lambda: reference_logits(checkpoint, architecture, [[1, 2, 3]])) < LARGEST_BYTES / 2


def test_widening_holds_slices_too(tmp_path: Path, source: Path) -> None:
    wide = replace(SHAPE, hidden_size=320)
    assert _peak(lambda: widen_checkpoint(source, tmp_path / "wide", wide)) < LARGEST_BYTES
