"""A report in lines for a terminal. Knows no folder."""

from __future__ import annotations

from collections.abc import Iterator

from ortserve.runtime.parity import EncoderProof, ParityReport
from ortserve.runtime.report import Report


def describe_report(report: Report | None) -> Iterator[str]:
    """One line for the verdict, one for each comparison, one for each reason why the folder is unverified."""
    if report is None:
        yield f"{'proof':12} none: UNVERIFIED, there is no report.json that can be read"
        return
    if report.path:
        yield f"{'via':12} {report.path}"
    if report.parity is None and report.encoder is None:
        yield f"{'proof':12} none"
    if report.parity is not None:
        yield from _parity(report.parity)
    if report.encoder is not None:
        yield from _encoder(report.encoder)
    yield f"{'weights':12} {report.weight_bytes:,} bytes, {report.bits_per_weight:g} bits per parameter"
    for file in report.files:
        yield f"  sha256 {file.sha256}  {file.name}"
    for label, versions in (("versions", report.versions), ("in optimum's", report.optimum_versions)):
        if versions:
            yield f"{label:12} {', '.join(f'{name} {number}' for name, number in versions.items())}"
    yield f"{'verdict':12} {'verified' if report.verified else 'UNVERIFIED: ' + '; '.join(report.findings)}"


def _parity(parity: ParityReport) -> Iterator[str]:
    verdict = "passed" if parity.passed else "FAILED"
    yield (
        f"{'proof':12} {verdict} (mean KL at most {parity.max_mean_kl:g}, same best token at least"
        f" {parity.min_top1_agreement:.0%}) against {parity.reference}"
    )
    for case in parity.cases:
        yield (
            f"  {case.name:10} {case.num_positions} positions: mean KL {case.mean_kl:.2e}, same best token"
            f" {case.top1_agreement:.1%}, largest error {case.max_abs_error:.2e}"
        )
    if parity.stored is not None:
        yield (
            f"  {'as stored':10} {parity.stored.num_positions} positions against the reference over the stored"
            f" matrices: 10th percentile of KL {parity.stored.low_kl:.2e} (at most {parity.stored.max_low_kl:g}),"
            f" matrices off by a factor of {parity.stored.factor_error:.2%} at most"
        )
    if parity.perplexity is not None:
        found = parity.perplexity
        limit = "" if found.max_ratio is None else f" (at most {found.max_ratio - 1:+.2%})"
        yield (
            f"  {'perplexity':10} {found.num_tokens} held-out tokens: {found.graph:.3f}, reference"
            f" {found.reference:.3f}, {found.ratio - 1:+.2%}{limit}"
        )
    if parity.greedy is not None:
        agreed = parity.greedy
        yield f"  {'greedy':10} the first {agreed.agreed} of {agreed.num_tokens} tokens are the reference's"


def _encoder(proof: EncoderProof) -> Iterator[str]:
    yield f"{'proof':12} {'passed' if proof.passed else 'FAILED'} against {proof.reference}"
    for case in proof.cases:
        yield (
            f"  {case.name:18} {case.num_texts} texts: cosine {case.mean_cosine:.6f}, worst {case.min_cosine:.6f}"
            f" (at least {case.least_cosine:g}), largest error {case.max_error:.2e} (at most {case.largest_error:g})"
        )
