"""One uniform number per (seed, choice, position), without state. Knows no tokens and no batch.

SplitMix64 (Steele, Lea, Flood 2014) is a counter-based generator: its n-th output is a hash of its start plus n times
a constant. So a token's number depends on its own position alone, whatever was batched, cached, drafted or preempted.
"""

from __future__ import annotations

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_UNIT = 2.0**-53


def uniform(seed: int, choice: int, position: int) -> float:
    """A double in [0, 1) with 53 random bits. `seed` is any integer; its lowest 64 bits count."""
    start = _mix((_mix(seed + _GAMMA) + (choice + 1) * _GAMMA) & _MASK)
    return (_mix(start + (position + 1) * _GAMMA) >> 11) * _UNIT


def _mix(value: int) -> int:
    """The finalizer of SplitMix64: a bijection of 64-bit integers that spreads every bit."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
