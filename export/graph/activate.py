"""Builds the gate of an MLP. Knows no matrices."""

from __future__ import annotations

from ortserve.export.architecture import Activation
from ortserve.export.graph.builder import MICROSOFT, GraphBuilder


def activate(graph: GraphBuilder, activation: Activation, gate: str, up: str, prefix: str) -> str:
    """activation(gate) * up, component by component."""
    name = f"{prefix}.gate_active"
    if activation == "gelu_tanh":
        active = graph.node("Gelu", [gate], name, approximate="tanh")
    else:
        # QuickGelu with alpha 1 is x * sigmoid(x), in one pass
        active = graph.node("QuickGelu", [gate], name, domain=MICROSOFT, alpha=1.0)
    return graph.node("Mul", [active, up], f"{prefix}.gated")
