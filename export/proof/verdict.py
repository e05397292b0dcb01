"""Judges a proof: every threshold with what was measured, and in words what is beyond it. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ortserve.runtime.parity import Check, EncoderProof, ParityReport


def check_parity_report(parity: ParityReport) -> tuple[Check, ...]:
    """All thresholds of a decoder's proof; a value that is not a number is beyond any."""
    return tuple(_parity_checks(parity))


def check_encoder_proof(proof: EncoderProof) -> tuple[Check, ...]:
    """All thresholds of an encoder's proof."""
    return tuple(
        check
        for case in proof.cases
        for check in (
            _at_least(f"worst cosine {case.name}", case.min_cosine, case.least_cosine),
            _at_most(f"largest error {case.name}", case.max_error, case.largest_error),
        )
    )


def all_pass(checks: Iterable[Check]) -> bool:
    """Nothing is beyond its threshold."""
    return all(check.passed for check in checks)


def failures(checks: Iterable[Check]) -> tuple[str, ...]:
    """One phrase for each threshold that was missed."""
    return tuple(f"{check.name} {check.measured:.4g} (limit {check.limit:.4g})" for check in checks if not check.passed)


def _parity_checks(parity: ParityReport) -> Iterator[Check]:
    for case in parity.cases:
        yield _at_most(f"mean KL at {case.name}", case.mean_kl, parity.max_mean_kl)
        yield _at_least(f"same best token at {case.name}", case.top1_agreement, parity.min_top1_agreement)
        if parity.max_abs_error is not None:
            yield _at_most(f"largest logit error at {case.name}", case.max_abs_error, parity.max_abs_error)
    stored = parity.stored
    if stored is not None:
        yield _at_most("10th percentile of KL as stored", stored.low_kl, stored.max_low_kl)
        yield _at_most("median KL as stored", stored.median_kl, stored.max_median_kl)
        yield _at_most("factor of a stored matrix", stored.factor_error, stored.max_factor_error)
    perplexity = parity.perplexity
    if perplexity is not None and perplexity.max_ratio is not None:
        yield _at_most("perplexity over the reference's", perplexity.ratio, perplexity.max_ratio)


def _at_most(name: str, measured: float, limit: float) -> Check:
    return Check(name, measured, limit, "at most", measured <= limit)


def _at_least(name: str, measured: float, limit: float) -> Check:
    return Check(name, measured, limit, "at least", measured >= limit)
