"""Builds the decoder graph of the contract in `ortserve.runtime.manifest`, streaming weights on the way.

Knows layers and their order; how a matrix is stored or multiplied is `matrix`, how attention is padded `attention`.
"""

from __future__ import annotations

import numpy as np

from ortserve.export.attention import attend, declare_attention_inputs
from ortserve.export.checkpoint import Checkpoint
from ortserve.export.graph_builder import MICROSOFT, GraphBuilder
from ortserve.export.matrix import look_up, multiply, store_matrix
from ortserve.export.plan import ExportPlan, LayerPlan


def build_decoder(graph: GraphBuilder, plan: ExportPlan, checkpoint: Checkpoint) -> None:
    """All nodes, inputs, outputs and weights. Raises `ExportError` when the checkpoint turns out to be damaged.

    The last layer computes its output projection and MLP only for the tokens whose logits are wanted.
    """
    architecture = plan.architecture
    graph.input("input_ids", np.int64, ["T"])
    declare_attention_inputs(graph, architecture, plan.max_context)
    graph.input("logit_index", np.int64, ["L"])
    store_matrix(graph, plan.embedding, checkpoint)
    residual = look_up(graph, plan.embedding, "input_ids")
    delta: str | None = None  # what the previous layer adds to the residual stream
    for layer in plan.layers:
        is_last = layer is plan.layers[-1]
        residual, delta = _layer(graph, plan, checkpoint, layer, residual=residual, delta=delta, is_last=is_last)
    assert delta is not None
    final, _ = _normalize(
        graph, plan, checkpoint, architecture.final_norm, name="final_norm", residual=residual, delta=delta
    )
    if not plan.shares_embedding:
        store_matrix(graph, plan.lm_head, checkpoint)
    stored = plan.embedding.name if plan.shares_embedding else None
    logits = multiply(graph, plan.lm_head, final, rows="logit_index", stored_as=stored)
    graph.node("Identity", [logits], "logits")
    graph.output("logits", np.float32, ["L", architecture.vocab_size])


def _layer(
    graph: GraphBuilder,
    plan: ExportPlan,
    checkpoint: Checkpoint,
    layer: LayerPlan,
    *,
    residual: str,
    delta: str | None,
    is_last: bool,
) -> tuple[str, str]:
    """One layer: the residual stream before it and what is still to be added, to the same after it."""
    prefix = f"layers.{layer.index}"
    for matrix in layer.matrices:
        store_matrix(graph, matrix, checkpoint)
    rows = "input_ids"
    normed, residual = _normalize(
        graph,
        plan,
        checkpoint,
        layer.attention_norm,
        name=f"{prefix}.attention_norm",
        residual=residual,
        delta=delta,
    )
    qkv = multiply(graph, layer.qkv, normed, rows=rows)
    take = "unpad_index"
    if is_last:
        take = graph.node("Gather", ["unpad_index", "logit_index"], "logit_unpad_index", axis=0)
        residual = graph.node("Gather", [residual, "logit_index"], "logit_residual", axis=0)
        rows = "logit_index"
    context = attend(graph, plan.architecture, layer.index, qkv, max_context=plan.max_context, take=take)
    attention = multiply(graph, layer.attention_output, context, rows=rows)
    normed, residual = _normalize(
        graph, plan, checkpoint, layer.mlp_norm, name=f"{prefix}.mlp_norm", residual=residual, delta=attention
    )
    gate = multiply(graph, layer.gate, normed, rows=rows)
    # QuickGelu with alpha 1 is x * sigmoid(x), in one pass
    gate = graph.node("QuickGelu", [gate], f"{prefix}.gate_active", domain=MICROSOFT, alpha=1.0)
    up = multiply(graph, layer.up, normed, rows=rows)
    gated = graph.node("Mul", [gate, up], f"{prefix}.gated")
    return residual, multiply(graph, layer.down, gated, rows=rows)


def _normalize(
    graph: GraphBuilder,
    plan: ExportPlan,
    checkpoint: Checkpoint,
    tensor: str,
    *,
    name: str,
    residual: str,
    delta: str | None,
) -> tuple[str, str]:
    """RMS norm of `residual + delta`: the normed value and the sum (https://arxiv.org/abs/1910.07467)."""
    weight = graph.weight(f"{name}.weight", np.float32, (plan.architecture.hidden_size,), [checkpoint.read(tensor)])
    epsilon = plan.architecture.norm_epsilon
    if delta is None:
        return graph.node("SimplifiedLayerNormalization", [residual, weight], name, axis=-1, epsilon=epsilon), residual
    normed, _, _, total = graph.node_with_outputs(
        "SkipSimplifiedLayerNormalization",
        [residual, delta, weight],
        [name, "", "", f"{name}.residual"],
        domain=MICROSOFT,
        epsilon=epsilon,
    )
    return normed, total
