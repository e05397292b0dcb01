"""Asks this machine's products of block-quantized matrices whether a token's bits depend on the tokens beside it.

ONNX Runtime's kernels take tokens in pairs and a last odd one by other instructions, so a runner computes an even
number (`slots/runner.py`). Whether that is enough is measured, not assumed. Knows no model.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ortserve.runtime.errors import DeviceError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.session import Session

_BITS = (4, 8)  # checkpoints that were quantized by others have 8 too
_BLOCK_SIZES = (16, 32, 64, 128, 256)
_NUM_ROWS = 68  # whole tiles of output features, and a part of one
_COUNTS = (2, 4, 6, 14, 30, 128, 130, 256)  # of tokens: pairs within and across the pieces that threads take
_LAST_COUNT = 258


def check_exact_products(manifest: Manifest, *, num_threads: int | None) -> None:
    """Raise `DeviceError` where products of an even number of tokens give a token other bits for other numbers."""
    if not _is_exact(num_threads):
        raise DeviceError(
            f"--deterministic cannot be kept with {manifest.name} on this CPU: products of its {manifest.precision}"
            " matrices give a token other bits beside other tokens; export it with --precision int8 or fp32"
        )


@cache
def _is_exact(num_threads: int | None) -> bool:
    """The same tokens among more and more others, in all formats of blocks; a pair's place does not matter either."""
    generator = np.random.default_rng(11)
    for bits, block_size in product(_BITS, _BLOCK_SIZES):
        num_columns = 3 * block_size - 8  # the last block is not full
        session = Session(_graph(bits, block_size, num_columns, generator), num_threads=num_threads)
        tokens = generator.standard_normal((_LAST_COUNT, num_columns)).astype(np.float32)
        whole = session.run({"tokens": tokens})[0]
        for count in _COUNTS:
            for first in (0, 1):
                part = session.run({"tokens": tokens[first : first + count]})[0]
                if not np.array_equal(part, whole[first : first + count]):
                    return False
    return True


def _graph(bits: int, block_size: int, num_columns: int, generator: np.random.Generator) -> bytes:
    """MatMulNBits as graphs for the CPU have it, with zero points."""
    num_blocks = -(-num_columns // block_size)
    codes = generator.integers(0, 256, (_NUM_ROWS, num_blocks, block_size * bits // 8), np.uint8)
    scales = (0.5 + generator.random((_NUM_ROWS, num_blocks))).astype(np.float32) / 100
    zeros = generator.integers(0, 256, (_NUM_ROWS, -(-num_blocks * bits // 8)), np.uint8)
    stored = {"codes": codes, "scales": scales, "zeros": zeros}
    node = helper.make_node(
        "MatMulNBits",
        ["tokens", *stored],
        ["products"],
        domain="com.microsoft",
        bits=bits,
        block_size=block_size,
        K=num_columns,
        N=_NUM_ROWS,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "products_check",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["T", num_columns])],
        [helper.make_tensor_value_info("products", TensorProto.FLOAT, ["T", _NUM_ROWS])],
        [numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString())
