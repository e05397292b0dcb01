"""What an exported graph may differ from its reference by, for each precision and cache, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Limits:
    """What a precision is allowed to differ by."""

    max_mean_kl: float  # nats
    min_top1_agreement: float
    max_perplexity_ratio: float  # of the graph over the reference, on held-out text
    max_abs_error: float | None = None  # of a logit


# fp32 proves that the graph computes the right function: rounding measures a mean KL of 1e-12 to 2e-11, one wrong
# constant far above the limit. Graphs of other precisions differ only in their matrices, so their limits bound what
# rounding the matrices costs. Measured, as mean KL and same best token:
#   trained, 5M parameters       int8 0.005, 96 %   int4-128 0.27, 83 %
#   trained, 0.6M parameters     int8 0.012, 96 %
#   random weights, 0.5B, 1.2B   int8 0.011, 90 %   int4-128 0.47, 40 %   (150,000 ids, near ties everywhere)
#   tiny, random, CUDA graphs        fp16 2e-6, 99 %   bf16 1e-4, 98 %   (weights rounded, activations float32)
# A trained model is sure of most of its tokens, so its limits are the strict ones. Checkpoints that say in config.json
# that their weights are random (`ortserve toy`) are only ever measured for speed; theirs leave a factor of about two.
LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(1e-6, 0.99, 1.0001, max_abs_error=1e-3),
    "int8": Limits(0.03, 0.90, 1.01),
    "int4": Limits(0.30, 0.70, 1.04),
    "fp16": Limits(2e-5, 0.97, 1.002),
    "bf16": Limits(1e-3, 0.95, 1.01),
}
RANDOM_LIMITS: Mapping[str, Limits] = {
    "fp32": LIMITS["fp32"],
    "int8": Limits(0.03, 0.80, 1.01),
    "int4": Limits(0.80, 0.25, 1.04),
    "fp16": Limits(2e-5, 0.95, 1.002),
    "bf16": Limits(1e-3, 0.90, 1.01),
}


# A quantized KV cache costs something by itself, whatever the matrices are. Measured with float matrices, as mean KL,
# same best token and perplexity:
#   trained, 5M parameters           int8 1.8e-3, 98 %, -0.4 %
KV_LIMITS: Mapping[str, Limits] = {
    "int8": Limits(0.01, 0.93, 1.01),
    "float8e4m3fn": Limits(0.05, 0.85, 1.02),
}


def limits_of(manifest: Manifest, *, is_random: bool) -> Limits:
    """The wider of what its matrices and what its cache may cost."""
    limits = (RANDOM_LIMITS if is_random else LIMITS)[manifest.precision]
    of_cache = KV_LIMITS.get(manifest.kv.dtype)
    if of_cache is None:
        return limits
    return Limits(
        max(limits.max_mean_kl, of_cache.max_mean_kl),
        min(limits.min_top1_agreement, of_cache.min_top1_agreement),
        max(limits.max_perplexity_ratio, of_cache.max_perplexity_ratio),
    )
