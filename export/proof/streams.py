"""Compares the residual streams of two passes layer by layer. Knows arrays, no weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ortserve.runtime.parity import LayerError

Floats = NDArray[np.float32]


class StreamRecord:
    """What each layer of one pass gives for `num_tokens` tokens after the first `start` ones."""

    def __init__(self, start: int, num_tokens: int) -> None:
        self._span = slice(start, start + num_tokens)
        self._streams: dict[int, Floats] = {}

    def see(self, layer: int, stream: Floats) -> None:
        """A stream of all tokens, `[tokens, hidden]`."""
        self._streams[layer] = stream[self._span].copy()

    def errors(self, exact: StreamRecord) -> tuple[LayerError, ...]:
        """Of every layer that both have seen."""
        both = sorted(self._streams.keys() & exact._streams.keys())
        return tuple(LayerError(layer, _error(self._streams[layer], exact._streams[layer])) for layer in both)


def _error(found: Floats, exact: Floats) -> float:
    lengths = np.maximum(np.linalg.norm(exact.astype(np.float64), axis=1), 1e-30)
    errors = np.linalg.norm(found.astype(np.float64) - exact, axis=1) / lengths
    return float(np.sqrt(np.mean(np.square(errors))))
