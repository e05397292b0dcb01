"""Reads matrices stored as small integers in groups, AWQ's and GPTQ's: as float32, or as the integers themselves.

A value is `(code - zero) * scale`; one zero point and one scale belong to the columns of one group in one row. That
product is exact in float32, since codes have at most 8 bits and scales are float16. Sources of the layouts: AutoAWQ's
`WQLinear_GEMM` and `WQLinear_GEMV`, AutoGPTQ's `qlinear_cuda_old` and GPTQModel's `TorchQuantLinear`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ortserve.export.sources.safetensors_file import StoredTensor

Layout = Literal["gemm", "gemv", "gptq"]
WORD_BITS = 32
# Where in a word the first, second, ... code lies: AWQ's GEMM kernels read even columns before odd ones.
PLACES: Mapping[Layout, tuple[int, ...] | None] = {"gemm": (0, 4, 1, 5, 2, 6, 3, 7), "gemv": None, "gptq": None}


@dataclass(frozen=True, slots=True)
class Packing:
    """How all packed matrices of one checkpoint are stored."""

    layout: Layout
    bits: int
    group_size: int | None  # columns; None: a row is one group
    zero_offset: int = 0  # 1: what is stored is a zero point less one (GPTQ's first format)
    has_zeros: bool = True  # False: every zero point is the middle code


@dataclass(frozen=True)
class PackedTensor:
    """One matrix `[rows, columns]`: rows are output features, in whatever orientation they are stored."""

    packing: Packing
    codes_at: StoredTensor  # qweight
    scales_at: StoredTensor
    zeros_at: StoredTensor | None  # qzeros; None: every zero point is the middle code
    groups_at: StoredTensor | None  # g_idx, `[columns]`; None: columns lie group after group
    shape: tuple[int, int]

    @property
    def path(self) -> Path:
        """The file of the codes."""
        return self.codes_at.path

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""
        return np.dtype(np.float32)

    @property
    def group_size(self) -> int:
        """Columns of one group."""
        return self.packing.group_size or self.shape[1]

    @property
    def num_groups(self) -> int:
        """Of one row."""
        return -(-self.shape[1] // self.group_size)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """The group of each column."""
        if self.groups_at is None:
            return np.arange(self.shape[1]) // self.group_size
        return self.groups_at.raw().astype(np.int64)

    @property
    def is_ordered(self) -> bool:
        """Columns lie group after group."""
        return bool(np.array_equal(self.groups, np.arange(self.shape[1]) // self.group_size))

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows `[start, stop)` as float32. Raises `ExportError` when the file shrank since."""
        centred = self.codes(start, stop).astype(np.float32) - self.zeros(start, stop)[:, self.groups]
        values: NDArray[np.float32] = centred * self.scales(start, stop)[:, self.groups]
        return values

    def codes(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Of rows `[start, stop)`, `[rows, columns]`."""
        stop = self._stop(stop)
        words = self.codes_at.raw()
        if self.packing.layout == "gemm":
            return self._across_rows(words, start, stop)
        along = words[start:stop] if self.packing.layout == "gemv" else words[:, start:stop].T
        return self._unpack(along)[:, : self.shape[1]]

    def zeros(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Zero points of rows `[start, stop)`, `[rows, groups]`."""
        stop = self._stop(stop)
        if self.zeros_at is None:
            return np.full((stop - start, self.num_groups), 1 << self.packing.bits - 1, np.uint8)
        words = self.zeros_at.raw()
        if self.packing.layout == "gemv":
            return self._unpack(words[start:stop])[:, : self.num_groups]
        stored = self._across_rows(words, start, stop)
        # a stored 15 stands for 0: the sum has as many bits as a code
        return (stored + np.uint8(self.packing.zero_offset)) & np.uint8((1 << self.packing.bits) - 1)

    def scales(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Scales of rows `[start, stop)`, `[rows, groups]`."""
        stop = self._stop(stop)
        stored = self.scales_at.read()
        return stored[start:stop, : self.num_groups] if self.packing.layout == "gemv" else stored[:, start:stop].T

    def _across_rows(self, words: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
        """Rows from words that hold neighbouring rows: `[k, words]` to `[rows, k]`."""
        per_word = WORD_BITS // self.packing.bits
        first = start // per_word
        found = self._unpack(words[:, first : -(-stop // per_word)])
        return found[:, start - first * per_word : stop - first * per_word].T

    def _unpack(self, words: NDArray[np.int32]) -> NDArray[np.uint8]:
        """`[n, words]` to `[n, codes]`."""
        bits, per_word = self.packing.bits, WORD_BITS // self.packing.bits
        places = PLACES[self.packing.layout] or range(per_word)
        found = np.empty((*words.shape, per_word), np.uint8)
        for index, place in enumerate(places):
            found[..., index] = (words >> np.int32(place * bits)) & np.int32((1 << bits) - 1)
        return found.reshape(len(words), -1)

    def _stop(self, stop: int | None) -> int:
        return self.shape[0] if stop is None else min(stop, self.shape[0])
