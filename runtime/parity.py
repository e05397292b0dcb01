"""What the proof of an export measured, and the thresholds it was judged by. Knows neither files nor graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """One threshold and the verdict on it."""

    name: str  # as people read it: mean KL at prefill, perplexity, ...
    measured: float
    limit: float
    bound: Literal["at most", "at least"]
    passed: bool


@dataclass(frozen=True, slots=True)
class ParityCase:
    """One comparison of the exported graph with the independent reference."""

    name: str  # prefill, decode, ragged batch, ...
    num_positions: int
    max_abs_error: float  # over logits
    mean_kl: float  # nats, KL(reference || graph) averaged over positions
    top1_agreement: float  # share of positions with the same most likely token
    max_kl: float  # of any position


@dataclass(frozen=True, slots=True)
class StoredComparison:
    """The graph beside the reference with the graph's own matrices and rounding: what is left is float32 noise.

    Rounding falls the other way at many positions, and at some it never does: the tenth of positions that differ least
    is nearly equal unless the graph computes something else. The median sees what only later positions compute wrongly.
    """

    num_positions: int
    low_kl: float  # nats, 10th percentile over positions
    median_kl: float
    max_low_kl: float  # threshold
    max_median_kl: float  # threshold
    factor_error: float  # of the stored matrix that differs most from the checkpoint's by a factor
    max_factor_error: float  # threshold


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Of held-out text, which was not calibrated by."""

    num_tokens: int  # predicted
    reference: float
    graph: float
    max_ratio: float | None  # threshold of graph over reference; None: random weights have no perplexity to keep

    @property
    def ratio(self) -> float:
        """Graph over reference."""
        return self.graph / self.reference


@dataclass(frozen=True, slots=True)
class GreedyAgreement:
    """How long the graph's greedy reply is also the reference's."""

    num_tokens: int  # generated
    agreed: int  # before the first that the reference would not choose


@dataclass(frozen=True, slots=True)
class LayerError:
    """What rounding has cost by the end of one layer."""

    layer: int
    error: float  # root mean square over held-out tokens of |rounded - exact| / |exact| of the residual stream


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The proof of an export: thresholds and what was measured."""

    reference: str  # what it was compared with
    passed: bool
    max_mean_kl: float  # threshold
    min_top1_agreement: float  # threshold
    cases: tuple[ParityCase, ...]
    max_abs_error: float | None = None  # threshold, over logits; None: rounded matrices are not held to one
    stored: StoredComparison | None = None  # None: fp32, where the cases themselves are as strict
    perplexity: Perplexity | None = None
    greedy: GreedyAgreement | None = None
    layers: tuple[LayerError, ...] = ()  # of rounded matrices; empty: none are rounded, or CUDA
    libraries: Mapping[str, str] = field(default_factory=dict)  # of the reference, with their versions


@dataclass(frozen=True, slots=True)
class EncoderCase:
    """One comparison of the exported graph with the reference, over the same texts."""

    name: str  # one by one, in one batch, ...
    num_texts: int
    min_cosine: float  # of the worst text; of scores: their correlation over all pairs
    mean_cosine: float
    max_error: float  # of any number, relative to its text's largest; of scores: relative to their spread
    least_cosine: float  # threshold of every text
    largest_error: float  # threshold of every number


@dataclass(frozen=True, slots=True)
class EncoderProof:
    """The proof of an export: thresholds and what was measured."""

    reference: str  # what it was compared with
    passed: bool
    cases: tuple[EncoderCase, ...]
