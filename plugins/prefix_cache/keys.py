"""Names of prefixes: tokens as bytes, and the chain of SHA-256 keys over them. Knows no blocks and no tree."""

from __future__ import annotations

import struct
from hashlib import sha256

TOKEN_BYTES = 4  # a vocabulary of 2**32 is enough, and a fixed width makes byte prefixes token prefixes


def pack(tokens: tuple[int, ...]) -> bytes:
    """Four little-endian bytes per token. Raises `struct.error` for an id that is negative or above 2**32 - 1."""
    return struct.pack(f"<{len(tokens)}I", *tokens)


def unpack(packed: bytes) -> tuple[int, ...]:
    """The tokens that `pack` was given."""
    return struct.unpack(f"<{len(packed) // TOKEN_BYTES}I", packed)


def root_key(digest: str, salt: bytes) -> bytes:
    """Where the chain of one salt of one model begins; the length keeps (digest, salt) pairs apart."""
    name = digest.encode()
    return sha256(len(name).to_bytes(8, "little") + name + salt).digest()


def block_key(parent: bytes, packed: bytes) -> bytes:
    """The key of a block says everything it depends on: the model, the salt and every token up to its end."""
    return sha256(parent + packed).digest()


def num_shared(one: bytes, other: bytes) -> int:
    """How many leading tokens two packed sequences have in common."""
    size = min(len(one), len(other))
    first, second = one[:size], other[:size]
    if first == second:
        return size // TOKEN_BYTES
    # The lowest set bit of the exclusive or lies in the first byte that differs.
    difference = int.from_bytes(first, "little") ^ int.from_bytes(second, "little")
    return ((difference & -difference).bit_length() - 1) // (8 * TOKEN_BYTES)
