"""The proof of an export: logits of the graph against the independent reference in every shape the engine uses.

Knows the reference and the graph contract, not how the graph was built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ortserve.export.checkpoint import Checkpoint
from ortserve.export.graph_run import GraphRun, RowInput
from ortserve.export.plan import ExportPlan
from ortserve.export.reference import reference_logits
from ortserve.runtime.manifest import Manifest, ParityCase, ParityReport

Floats = NDArray[np.float32]
SENTENCES = (
    "The harbour was quiet that morning, and the first boats were already far out on the grey water.",
    "def add(first, second):\n    return first + second\n",
    "Question: what is the capital of France? Answer: the capital of France is Paris.",
)
LARGE_MODEL = 100_000_000  # parameters; above it the proof uses fewer positions
REFERENCE = "independent NumPy float32 forward pass (export/reference.py)"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a precision is allowed to differ by."""

    max_mean_kl: float  # nats
    min_top1_agreement: float


LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(1e-6, 0.99),
    "int8": Limits(0.03, 0.90),
    "int4": Limits(0.30, 0.70),
}


def check_parity(folder: Path, manifest: Manifest, plan: ExportPlan, checkpoint: Checkpoint) -> ParityReport:
    """Compare at prefill, token-by-token decode, and ragged steps mixing decode, chunks and idle rows."""
    num_positions = 24 if plan.num_parameters > LARGE_MODEL else 48
    sequences = proof_sequences(checkpoint, manifest, num_positions=num_positions)
    expected = reference_logits(checkpoint, plan.architecture, sequences)
    found = {
        "prefill": _prefill(GraphRun(folder, manifest, num_rows=3, capacity=2 * num_positions), sequences),
    }
    run = GraphRun(folder, manifest, num_rows=3, capacity=2 * num_positions)
    found["decode"] = _decode(run, sequences)
    found["ragged"] = _ragged(run, sequences)
    limits = LIMITS[plan.precision]
    cases = tuple(_compare(name, expected, logits) for name, logits in found.items())
    passed = all(
        case.mean_kl <= limits.max_mean_kl and case.top1_agreement >= limits.min_top1_agreement for case in cases
    )
    return ParityReport(REFERENCE, passed, limits.max_mean_kl, limits.min_top1_agreement, cases)
