"""Asks this machine's attention over 8-bit keys and values whether a row's bits depend on how it is cut or batched.

ONNX Runtime chooses its kernels by CPU and shape; what deterministic mode promises is measured, not assumed. Knows no
model but its shape.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from ortserve.runtime.errors import DeviceError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.session import Session
from ortserve.runtime.step import EXACT_CUT

_SOFTCAP = 5.0  # takes another path through the kernel
_NUM_TOKENS = 2 * EXACT_CUT + 37
_CUTS = (EXACT_CUT, EXACT_CUT + 1, 2 * EXACT_CUT, 2 * EXACT_CUT + 2)  # then two tokens at a time
_ROWS = 3

Floats = npt.NDArray[np.float32]


def check_exact_kv(manifest: Manifest, *, num_threads: int | None) -> None:
    """Raise `DeviceError` where attention over an int8 cache depends on a row's neighbours or on how it is cut."""
    kv = manifest.kv
    if not _is_exact(manifest.num_heads, kv.num_kv_heads, kv.head_dim, num_threads):
        raise DeviceError(
            f"--deterministic cannot be kept with an int8 KV cache on this CPU: its attention of {manifest.num_heads}"
            f" heads of {kv.head_dim} gives other bits for other batches; export {manifest.name} without --kv int8"
        )


@cache
def _is_exact(num_heads: int, num_kv_heads: int, head_dim: int, num_threads: int | None) -> bool:
    """One row alone in one piece, and cut as deterministic mode cuts it between two others."""
    shape = _Shape(num_heads, num_kv_heads, head_dim)
    width = (num_heads + 2 * num_kv_heads) * head_dim
    tokens, others = np.random.default_rng(7).standard_normal((2, _NUM_TOKENS, width)).astype(np.float32)
    for softcap in (0.0, _SOFTCAP):
        session = Session(shape.graph(softcap), num_threads=num_threads)
        whole = _Cache(session, shape, 1).extend([tokens])[0]
        cache, done, pieces = _Cache(session, shape, _ROWS), 0, []
        for end in (*_CUTS, *range(_CUTS[-1] + 2, _NUM_TOKENS + 1, 2), _NUM_TOKENS):
            if end > done:
                first = done if end - done > 1 else done - 1  # a single token brings its predecessor along
                cache.lengths[1] = first
                before, after = others[: (end % 5) * 7 % 11], others[:2]
                pieces.append(cache.extend([before, tokens[first:end], after])[1][done - first :])
                done = end
        if not np.array_equal(np.concatenate(pieces), whole):
            return False
    return True


class _Shape:
    """Sizes of one attention, and its graph."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim

    def graph(self, softcap: float) -> bytes:
        """GroupQueryAttention by `query_seqlens` over an int8 cache with one scale per channel."""
        cache: list[str | int | None] = ["B", self.num_kv_heads, "C", self.head_dim]
        scale: list[str | int | None] = [1, self.num_kv_heads, 1, self.head_dim]
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        packed: list[str | int | None] = ["B", "S", width]
        inputs = [
            helper.make_tensor_value_info(name, kind, dims)
            for name, kind, dims in (
                ("qkv", TensorProto.FLOAT, packed),
                ("past_key", TensorProto.INT8, cache),
                ("past_value", TensorProto.INT8, cache),
                ("seqlens_k", TensorProto.INT32, ["B"]),
                ("total", TensorProto.INT32, []),
                ("scale", TensorProto.FLOAT, scale),
                ("lengths", TensorProto.INT32, ["B"]),
            )
        ]
        outputs = [
            helper.make_tensor_value_info("out", TensorProto.FLOAT, ["B", "S", self.num_heads * self.head_dim]),
            *(helper.make_tensor_value_info(name, TensorProto.INT8, cache) for name in ("key", "value")),
        ]
        past = ["past_key", "past_value", "seqlens_k", "total", "", "", "", "", "", "scale", "scale", "", "", "lengths"]
        node = helper.make_node(
            "GroupQueryAttention",
            ["qkv", "", "", *past],
            ["out", "key", "value"],
            domain="com.microsoft",
            num_heads=self.num_heads,
            kv_num_heads=self.num_kv_heads,
            softcap=softcap,
            k_quant_type="PER_CHANNEL",
            v_quant_type="PER_CHANNEL",
            kv_cache_bit_width=8,
        )
        graph = helper.make_graph([node], "kv_check", inputs, outputs)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return bytes(helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString())


class _Cache:
    """Rows that grow; copied at every step, since the check is small."""

    def __init__(self, session: Session, shape: _Shape, num_rows: int) -> None:
        self._session, self._shape = session, shape
        size = (num_rows, shape.num_kv_heads, 2 * _NUM_TOKENS, shape.head_dim)
        self._cache: list[npt.NDArray[np.generic]] = [np.zeros(size, np.int8), np.zeros(size, np.int8)]
        self.lengths = [0] * num_rows

    def extend(self, pieces: list[Floats]) -> list[Floats]:
        """What each row's new tokens attend to; rows without any are idle. Only row 1 grows, others begin anew."""
        counts = [len(piece) for piece in pieces]
        padded = np.zeros((len(pieces), max(counts), pieces[0].shape[1]), np.float32)
        starts = [self.lengths[row] if row == 1 else 0 for row in range(len(pieces))]
        for row, piece in enumerate(pieces):
            padded[row, : len(piece)] = piece
        shape = self._shape
        out, *cache = self._session.run(
            {
                "qkv": padded,
                "past_key": self._cache[0],
                "past_value": self._cache[1],
                "seqlens_k": np.array(
                    [max(start + count - 1, 0) for start, count in zip(starts, counts, strict=True)], np.int32
                ),
                "total": np.array(self._cache[0].shape[2], np.int32),
                "scale": np.full((1, shape.num_kv_heads, 1, shape.head_dim), 4 / 127, np.float32),
                "lengths": np.array(counts, np.int32),
            }
        )
        self._cache = cache
        self.lengths = [start + count for start, count in zip(starts, counts, strict=True)]
        return [out[row, :count].astype(np.float32) for row, count in enumerate(counts)]
