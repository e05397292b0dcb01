"""One digest for a whole plan: dataclasses, arrays and plain values, by content. Knows no plan."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np


def digest_of(value: object) -> str:
    """SHA-256 in hexadecimal; equal values have equal digests in every process."""
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _parts(value: object) -> Iterator[bytes]:
    yield type(value).__name__.encode()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name.encode()
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype.str} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _parts(key)
            yield from _parts(entry)
        yield b"end"
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _parts(entry)
        yield b"end"
    else:
        yield repr(value).encode()
