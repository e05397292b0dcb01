"""Stores the weight of an RMS norm and builds the nodes that normalize by it. Knows no layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Norm
from ortserve.export.graph.builder import MICROSOFT, GraphBuilder
from ortserve.export.sources.checkpoint import Checkpoint


def store_norm(
    graph: GraphBuilder,
    norm: Norm,
    checkpoint: Checkpoint,
    name: str,
    *,
    scale: float = 1.0,
    divisor: NDArray[np.float32] | None = None,
) -> None:
    """Write `(offset + weight) * scale / divisor` as `{name}.weight`."""
    weight = checkpoint.read(norm.weight)
    if norm.offset or scale != 1.0:
        weight = ((weight.astype(np.float64) + norm.offset) * scale).astype(np.float32)
    if divisor is not None:
        weight = weight / divisor
    graph.weight(f"{name}.weight", graph.floats, (norm.width,), [weight])


def normalize(graph: GraphBuilder, norm: Norm, name: str, value: str) -> str:
    """RMS norm of `value` along its last axis by the stored weight."""
    inputs = [value, f"{name}.weight"]
    return graph.node("SimplifiedLayerNormalization", inputs, name, axis=-1, epsilon=norm.epsilon)


def add_and_normalize(graph: GraphBuilder, norm: Norm, name: str, residual: str, delta: str) -> tuple[str, str]:
    """The normed sum and the sum itself, in one pass."""
    normed, _, _, total = graph.node_with_outputs(
        "SkipSimplifiedLayerNormalization",
        [residual, delta, f"{name}.weight"],
        [name, "", "", f"{name}.residual"],
        domain=MICROSOFT,
        epsilon=norm.epsilon,
    )
    return normed, total
