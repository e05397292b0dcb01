"""Spells a graph for steps of one token: which 4-bit products leave the tensor cores. Knows MatMulNBits, no model.

On CUDA the kernel that multiplies by codes shares a matrix out among thread blocks by its outputs alone: with few of
them most of the device idles. The kernel for one token shares out the inputs too, and is what a product with explicit
zero points takes, though they say what is implied.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

WIDE = 8192  # outputs from which on a product stays on the tensor cores
_BITS = 4
_MIDDLE = 0x88  # two codes that stand for zero


def spell_for_one_token(path: Path) -> bytes:
    """The graph with zero points for its narrow 4-bit products; weights stay where they are, in the graph's folder."""
    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        options = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type != "MatMulNBits" or len(node.input) != 3 or options["bits"] != _BITS or options["N"] >= WIDE:
            continue
        num_blocks = -(-options["K"] // options["block_size"])
        zeros = np.full((options["N"], -(-num_blocks * _BITS // 8)), _MIDDLE, np.uint8)
        name = f"{node.output[0]}.implied_zero"
        model.graph.initializer.append(numpy_helper.from_array(zeros, name))
        node.input.append(name)
    return bytes(model.SerializeToString())
