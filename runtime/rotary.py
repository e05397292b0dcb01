"""How a request's positions rotate, where that depends on its length: chosen once, by prompt and `max_tokens`.

LongRoPE and dynamic scaling turn long requests otherwise than short ones. The graph holds the tables of all regimes one
above the other, and a request keeps the regime it was admitted with: keys that were rotated by one regime mean nothing
in another. Knows no angles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from ortserve.runtime.manifest import Manifest, RotaryRegime


def regimes_within(manifest: Manifest, max_context: int) -> tuple[RotaryRegime, ...]:
    """Those that requests of up to `max_context` tokens need, shortest first: at least one."""
    every = manifest.rotary_regimes or (RotaryRegime(manifest.max_context, 0),)
    needed = sum(regime.max_tokens < max_context for regime in every) + 1
    shorter, longest = every[: needed - 1], every[min(needed, len(every)) - 1]
    return (*shorter, replace(longest, max_tokens=max_context))


def choose_regime(regimes: Sequence[RotaryRegime], num_tokens: int) -> RotaryRegime:
    """The shortest that holds `num_tokens`, which are no more than the longest does."""
    return next(regime for regime in regimes if num_tokens <= regime.max_tokens)


def salt_within(regime: RotaryRegime, salt: bytes) -> bytes:
    """What the prompt cache keys a request's prefixes by: nothing may be reused across regimes, as across salts."""
    if regime.first_row == 0:
        return salt
    return sha256(b"ortserve rotary regime\0" + regime.first_row.to_bytes(8, "little") + salt).digest()


def assumed_tokens(regimes: Sequence[RotaryRegime], num_prompt_tokens: int) -> int:
    """How long a request without `max_tokens` is taken to become: a reply of half of what the shortest regime holds.

    Less where the longest holds no more. The reply may fill the regime that is chosen by it, and ends there.
    """
    return min(num_prompt_tokens + regimes[0].max_tokens // 2, regimes[-1].max_tokens)
