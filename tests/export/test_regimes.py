"""Positions that rotate by how long a request becomes: tables, reference, graphs and proofs, as transformers has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from ortserve.export.architecture import Rope
from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.float_reference.rotary import frequency
from ortserve.export.graph import attention as attention_module
from ortserve.export.graph.rope import inverse_frequencies, rotary_tables
from ortserve.export.proof.graph_run import GraphRun, RowInput
from ortserve.export.proof.verify import check_parity
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes.plan import plan_export
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.runtime.manifest import RotaryRegime
from ortserve.runtime.report import read_report
from ortserve.runtime.rotary import choose_regime
from tests.export.family_checkpoints import assert_close
from tests.export.regimes import BOUNDS, DESCRIBED, copy_model, every_model, expected_at


def proved_cases(folder: Path) -> list[str]:
    parity = read_report(folder).parity
    assert parity is not None
    assert parity.passed
    return [case.name for case in parity.cases]


@every_model
def test_frequencies_are_those_of_transformers_at_every_length(tmp_path: Path, name: str) -> None:
    (rope,) = read_architecture(open_checkpoint(copy_model(name, tmp_path / "source"))).ropes()
    for length, wanted in DESCRIBED[name]["lengths"].items():
        found = inverse_frequencies(rope, int(length))
        np.testing.assert_allclose(found, wanted["frequencies"], rtol=2e-6)
        independent = [frequency(rope, pair, int(length)) for pair in range(len(found))]
        np.testing.assert_allclose(independent, wanted["frequencies"], rtol=2e-6)
        assert rope.attention_factor == pytest.approx(wanted["attention_factor"])


@every_model
def test_the_reference_equals_transformers_on_both_sides_of_a_threshold(tmp_path: Path, name: str) -> None:
    checkpoint, expected = open_checkpoint(copy_model(name, tmp_path / "source")), expected_at(name)
    architecture = read_architecture(checkpoint)
    found = reference_logits(checkpoint, architecture, [tokens for tokens, _ in expected.values()])
    for logits, (_, wanted) in zip(found, expected.values(), strict=True):
        assert_close(logits, wanted)
    # what a sequence becomes decides, not what it is
    tokens, wanted = expected[96]
    (cut,) = reference_logits(checkpoint, architecture, [tokens[:20]], [96])
    assert_close(cut, wanted[:20])
    (plain,) = reference_logits(checkpoint, architecture, [tokens[:20]])
    assert np.abs(plain - wanted[:20]).max() > 0.01


@every_model
def test_a_float32_graph_equals_transformers_with_every_regime_in_one_batch(tmp_path: Path, name: str) -> None:
    source = copy_model(name, tmp_path / "source")
    manifest = export_checkpoint(source, tmp_path / "out", precision="fp32", verify=False, progress=False)
    bounds = BOUNDS[name]
    assert manifest.max_context == 96
    assert manifest.rotary_regimes == tuple(
        RotaryRegime(bound, sum(bounds[:place])) for place, bound in enumerate(bounds)
    )
    expected = expected_at(name)
    run = GraphRun(tmp_path / "out", manifest, num_rows=len(expected), capacity=128)
    firsts = [choose_regime(manifest.rotary_regimes, length).first_row for length in expected]
    assert len(set(firsts)) == len(bounds)
    done = [0] * len(expected)
    found: list[list[np.ndarray]] = [[] for _ in expected]
    steps = ((5, 1, 9), (1, 1, 1), (0, 7, 2))  # chunks, decodes and an idle row
    while any(fed < length for fed, length in zip(done, expected, strict=True)):
        for lengths in steps:
            rows = [
                RowInput(tokens[fed : fed + count], fed, first)
                for (tokens, _), fed, count, first in zip(expected.values(), done, lengths, firsts, strict=True)
            ]
            if not any(row.tokens for row in rows):
                continue
            for place, (row, logits) in enumerate(zip(rows, run.run(rows), strict=True)):
                found[place].append(logits)
                done[place] += len(row.tokens)
    for pieces, (_, wanted) in zip(found, expected.values(), strict=True):
        assert_close(np.concatenate(pieces), wanted)


@every_model
@pytest.mark.parametrize(("precision", "device"), [("int8", "cpu"), ("fp16", "cuda")])
def test_the_proof_computes_every_regime(tmp_path: Path, name: str, precision: str, device: str) -> None:
    source = copy_model(name, tmp_path / "source")
    manifest = export_checkpoint(source, tmp_path / "out", precision=precision, device=device, progress=False)  # type: ignore[arg-type]
    names = [name for name in proved_cases(tmp_path / "out") if name.startswith("lengths")]
    assert names == ["lengths 24, 48, 96" if name == "llama" else "lengths 48, 96, 48"]
    graph = onnx.load(str(tmp_path / "out" / manifest.graph), load_external_data=False).graph
    rotating = [
        node
        for node in graph.node
        if any(attribute.name == "do_rotary" and attribute.i for attribute in node.attribute)
    ]
    assert not rotating, "the operator counts positions itself and knows one table"
    tables = [tensor for tensor in graph.initializer if tensor.name.startswith("rotary")]
    assert [tensor.dims[0] for tensor in tables] == [sum(BOUNDS[name])] * 2


@every_model
def test_the_proof_catches_wrong_regimes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = copy_model(name, tmp_path / "source")
    checkpoint = open_checkpoint(source)
    architecture = read_architecture(checkpoint)
    manifest = export_checkpoint(source, tmp_path / "out", precision="fp32", progress=False)
    *shorter, longest = manifest.rotary_regimes
    for planted in (longest.first_row - 1, 0):  # one row off; the table of short requests
        wrong = replace(manifest, rotary_regimes=(*shorter, replace(longest, first_row=planted)))
        assert not check_parity(tmp_path / "out", wrong, architecture, checkpoint).passed

    def without_long(rope: Rope, num_positions: int) -> tuple[np.ndarray, np.ndarray]:
        cosine, sine = rotary_tables(rope, BOUNDS[name][0])
        places = np.arange(num_positions) % BOUNDS[name][0]
        return cosine[places], sine[places]

    monkeypatch.setattr(attention_module, "rotary_tables", without_long)
    planted_export = export_checkpoint(source, tmp_path / "bad", precision="fp32", progress=False, verify=False)
    assert not check_parity(tmp_path / "bad", planted_export, architecture, checkpoint).passed


def test_the_context_bounds_the_regimes(tmp_path: Path) -> None:
    long = read_architecture(open_checkpoint(copy_model("phi4_mini", tmp_path / "long")))
    dynamic = read_architecture(open_checkpoint(copy_model("llama", tmp_path / "dynamic")))
    for architecture, context, bounds in (
        (long, None, (48, 96)),
        (long, 49, (48, 49)),
        (long, 48, (48,)),
        (dynamic, None, (24, 48, 96)),
        (dynamic, 60, (24, 48, 60)),
        (dynamic, 20, (20,)),
    ):
        plan = plan_export(architecture, precision="fp32", max_context=context)
        assert plan.rotary_bounds == bounds
    assert plan_export(dynamic, precision="fp32").num_bytes == (
        plan_export(dynamic, precision="fp32", max_context=24).num_bytes + (48 + 96) * 8 * 4
    )
    with pytest.raises(ExportError, match="max context 97 is outside 1 to 96"):
        plan_export(dynamic, precision="fp32", max_context=97)  # four times the 24 it was trained for


def test_a_static_context_needs_no_second_table(tmp_path: Path) -> None:
    source = copy_model("phi4_mini", tmp_path / "source")
    manifest = export_checkpoint(source, tmp_path / "out", precision="fp32", max_context=48, progress=False)
    assert manifest.rotary_regimes == (RotaryRegime(48, 0),)
    assert not any(name.startswith("lengths") for name in proved_cases(tmp_path / "out"))
