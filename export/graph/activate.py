"""Builds the gate of an MLP. Knows no matrices."""

from __future__ import annotations

import math

import numpy as np

from ortserve.export.architecture import Activation
from ortserve.export.graph.builder import MICROSOFT, GraphBuilder

_GROUP = 512  # values of a row that one block of threads takes
# A norm whose epsilon dwarfs the squares divides by a constant. 2**15 is what float16 has; a mean square of 1e6 is then
# felt like one of its roundings.
_ROOT: dict[type[np.generic], float] = {np.float16: 2.0**15}
_WIDE_ROOT = 2.0**50


def gate_in_one_pass(graph: GraphBuilder, gate: str, up: str, prefix: str, *, width: int) -> str:
    """silu(gate) * up of `[T, width]`, computed in float32 and rounded once.

    Of ONNX Runtime's operators on CUDA only GatedRMSNorm multiplies by silu of another value: up * silu(gate) divided
    by a root mean square, which a large epsilon makes constant and the weight of the norm undoes.
    """
    root = _ROOT.get(graph.floats, _WIDE_ROOT)
    group = math.gcd(width, _GROUP)
    weight = graph.constant(f"gate_root.{group}", np.full(group, root, np.float32).astype(graph.floats))
    return graph.node(
        "GatedRMSNorm",
        [up, weight, gate],
        f"{prefix}.gated",
        domain=MICROSOFT,
        epsilon=root * root,
        activation="silu",
    )


def activate(graph: GraphBuilder, activation: Activation, gate: str, up: str, prefix: str) -> str:
    """activation(gate) * up, component by component."""
    name = f"{prefix}.gate_active"
    if activation == "gelu_tanh":
        active = graph.node("Gelu", [gate], name, approximate="tanh")
    else:
        # QuickGelu with alpha 1 is x * sigmoid(x), in one pass
        active = graph.node("QuickGelu", [gate], name, domain=MICROSOFT, alpha=1.0)
    return graph.node("Mul", [active, up], f"{prefix}.gated")
