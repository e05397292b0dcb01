"""What the report of an exported folder says, for tests. Knows no test."""

from __future__ import annotations

from pathlib import Path

from ortserve.runtime.parity import EncoderProof, ParityReport
from ortserve.runtime.report import read_report


def proof_of(folder: Path) -> ParityReport:
    parity = read_report(folder).parity
    assert parity is not None
    return parity


def encoder_proof_of(folder: Path) -> EncoderProof:
    proof = read_report(folder).encoder
    assert proof is not None
    return proof
