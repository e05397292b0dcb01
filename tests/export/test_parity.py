"""Exports of every supported variation compute what two independent implementations compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.proof.graph_run import GraphRun, RowInput
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import open_checkpoint
from tests.export.checkpoints import LLAMA3, Tiny, random_sequences, write_checkpoint
from tests.export.oracle import oracle_logits
from tests.export.proofs import proof_of

LINEAR = {"rope_type": "linear", "factor": 4.0}
VARIATIONS = {
    "plain": Tiny(),
    "llama3 rope": Tiny(config={"rope_scaling": LLAMA3}),
    "linear rope": Tiny(config={"rope_scaling": LINEAR}),
    "partial rope": Tiny(config={"partial_rotary_factor": 0.5}),
    "untied": Tiny(tied=False),
    "biases": Tiny(biases=True),
    "one kv head": Tiny(num_kv_heads=1),
    "as many kv heads": Tiny(num_kv_heads=4),
    "head of 8": Tiny(head_dim=8, num_heads=6, num_kv_heads=3),
    "sharded": Tiny(num_shards=3),
    "float16": Tiny(dtype="F16"),
    "bfloat16": Tiny(dtype="BF16"),
    "one layer": Tiny(num_layers=1),
    "mistral": Tiny(architecture="MistralForCausalLM", config={"sliding_window": None}),
    "sliding window": Tiny(architecture="MistralForCausalLM", config={"sliding_window": 5}),
}
variations = pytest.mark.parametrize("tiny", VARIATIONS.values(), ids=list(VARIATIONS))


@variations
def test_the_reference_equals_the_second_oracle(tmp_path: Path, tiny: Tiny) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "source", tiny))
    sequences = random_sequences(tiny.vocab_size, (13, 7))
    found = reference_logits(checkpoint, read_architecture(checkpoint), sequences)
    for tokens, logits in zip(sequences, found, strict=True):
        expected = oracle_logits(tiny.config_json(), tiny.tensors(), tokens)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@variations
def test_a_float32_graph_equals_the_second_oracle_in_mixed_steps(tmp_path: Path, tiny: Tiny) -> None:
    source = write_checkpoint(tmp_path / "source", tiny)
    manifest = export_checkpoint(source, tmp_path / "out", precision="fp32", verify=False)
    first, second = random_sequences(tiny.vocab_size, (13, 7))
    run = GraphRun(tmp_path / "out", manifest, num_rows=3, capacity=48)
    steps = [(6, 0), (1, 3), (1, 1), (0, 1), (5, 2)]
    found: list[list[np.ndarray]] = [[], []]
    done = [0, 0]
    for lengths in steps:
        rows = [
            RowInput(tokens[start : start + length], start)
            for tokens, start, length in zip((first, second), done, lengths, strict=True)
        ]
        logits = run.run([rows[0], RowInput([], 0), rows[1]])
        for index, row_logits in enumerate((logits[0], logits[2])):
            found[index].append(row_logits)
            done[index] += lengths[index]
    for tokens, pieces in zip((first, second), found, strict=True):
        expected = oracle_logits(tiny.config_json(), tiny.tensors(), tokens)
        np.testing.assert_allclose(np.concatenate(pieces), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@variations
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_every_precision_passes_its_proof(tmp_path: Path, tiny: Tiny, precision: str) -> None:
    source = write_checkpoint(tmp_path / "source", tiny)
    block_size = 16 if precision == "int4" else None
    export_checkpoint(source, tmp_path / "out", precision=precision, block_size=block_size, progress=False)
    parity = proof_of(tmp_path / "out")
    assert parity.passed
    assert [case.name for case in parity.cases] == ["prefill", "decode", "chunks", "ragged"]
    assert {case.num_positions for case in parity.cases} == {48 + 32 + 24}


def test_int8_loses_little(tmp_path: Path) -> None:
    export_checkpoint(write_checkpoint(tmp_path / "source"), tmp_path / "out", precision="int8")
    assert max(case.mean_kl for case in proof_of(tmp_path / "out").cases) < 0.01


def test_the_proof_fails_for_another_models_weights(tmp_path: Path) -> None:
    from ortserve.export.proof.verify import check_parity

    manifest = export_checkpoint(write_checkpoint(tmp_path / "one"), tmp_path / "out", precision="int4")
    other = open_checkpoint(write_checkpoint(tmp_path / "other", Tiny(seed=1)))
    parity = check_parity(tmp_path / "out", manifest, read_architecture(other), other)
    assert not parity.passed


@pytest.mark.parametrize(
    "wrong",
    [Tiny(rope_theta=90.0), Tiny(config={"rms_norm_eps": 2e-3}), Tiny(config={"rope_scaling": LINEAR})],
    ids=["theta", "epsilon", "scaling"],
)
def test_the_float32_proof_notices_one_wrong_constant(tmp_path: Path, wrong: Tiny) -> None:
    from ortserve.export.proof.verify import check_parity

    manifest = export_checkpoint(write_checkpoint(tmp_path / "right"), tmp_path / "out", precision="fp32")
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "wrong", wrong))
    assert not check_parity(tmp_path / "out", manifest, read_architecture(checkpoint), checkpoint).passed
