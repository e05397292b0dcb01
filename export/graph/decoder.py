"""Builds the decoder graph of the contract in `ortserve.runtime.manifest`, streaming weights on the way.

Knows layers and their order; how a matrix is stored or multiplied is `matrix`, how attention is padded `attention`.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from ortserve.export.architecture import Experts, Norm
from ortserve.export.graph import paged_attention
from ortserve.export.graph.activate import activate, gate_in_one_pass
from ortserve.export.graph.attention import attend, declare_attention_inputs
from ortserve.export.graph.builder import GraphBuilder
from ortserve.export.graph.experts import apply_experts
from ortserve.export.graph.matrix import look_up, multiply, store_matrix
from ortserve.export.graph.normalize import add_and_normalize, normalize, store_norm
from ortserve.export.recipes.layer_plan import LayerPlan, MlpPlan
from ortserve.export.recipes.plan import ExportPlan
from ortserve.export.sources.checkpoint import Checkpoint


def build_decoder(graph: GraphBuilder, plan: ExportPlan, checkpoint: Checkpoint) -> None:
    """All nodes, inputs, outputs and weights. Raises `ExportError` when the checkpoint turns out to be damaged.

    The last layer computes its output projection and MLP only for the tokens whose logits are wanted.
    """
    architecture = plan.architecture
    graph.input("input_ids", np.int64, ["T"])
    declare = paged_attention.declare_inputs if plan.is_paged else declare_attention_inputs
    declare(graph, plan)
    graph.input("logit_index", np.int64, ["L"])
    store_matrix(graph, plan.embedding, checkpoint)
    residual = look_up(graph, plan.embedding, "input_ids")
    factor = plan.embedding.column_factor
    if architecture.embedding_scale != 1.0 or factor is not None:
        # the factor is the output matrix's, whose bytes the embedding shares
        value = np.array(architecture.embedding_scale, np.float32) / (1 if factor is None else factor)
        scale = graph.constant("embedding_scale", value.astype(graph.floats))
        residual = graph.node("Mul", [residual, scale], "embedding_scaled")
    delta: str | None = None  # what the previous layer adds to the residual stream
    for layer in plan.layers:
        is_last = layer is plan.layers[-1]
        residual, delta = _layer(graph, plan, checkpoint, layer, residual=residual, delta=delta, is_last=is_last)
    assert delta is not None
    _logits(graph, plan, checkpoint, residual=residual, delta=delta)


def _logits(graph: GraphBuilder, plan: ExportPlan, checkpoint: Checkpoint, *, residual: str, delta: str) -> None:
    """Scales of the logits are folded into the last norm: that costs nothing and leaves a tied matrix as it is."""
    architecture = plan.architecture
    cap = architecture.logit_softcap
    store_norm(
        graph,
        architecture.final_norm,
        checkpoint,
        "final_norm",
        scale=architecture.final_scale,
        divisor=plan.lm_head.column_factor,
    )
    final, _ = add_and_normalize(graph, architecture.final_norm, "final_norm", residual, delta)
    if not plan.shares_embedding:
        store_matrix(graph, plan.lm_head, checkpoint)
    stored = plan.embedding.name if plan.shares_embedding else None
    logits = multiply(graph, plan.lm_head, final, rows="logit_index", stored_as=stored)
    if graph.floats is not np.float32:
        logits = graph.node("Cast", [logits], "wide_logits", to=onnx.TensorProto.FLOAT)
    if cap is None:
        graph.node("Identity", [logits], "logits")
    else:
        bounded = graph.node("Tanh", [logits], "bounded_logits")
        graph.node("Mul", [bounded, graph.constant("logit_softcap", np.float32(cap))], "logits")
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
    prefix, described = f"layers.{layer.index}", layer.layer
    for matrix in layer.matrices:
        store_matrix(graph, matrix, checkpoint)
    rows = "input_ids"
    normed, residual = _read(
        graph,
        checkpoint,
        described.attention_norm,
        f"{prefix}.attention_norm",
        residual=residual,
        delta=delta,
        divisor=layer.qkv.column_factor,
    )
    qkv = multiply(graph, layer.qkv, normed, rows=rows)
    if is_last:
        residual = graph.node("Gather", [residual, "logit_index"], "logit_residual", axis=0)
        rows = "logit_index"
    attending = paged_attention.attend if plan.is_paged else attend
    context = attending(graph, plan, checkpoint, layer.index, qkv, only_logits=is_last)
    attention = multiply(graph, layer.attention_output, context, rows=rows)
    attention = _after(graph, checkpoint, described.attention_post_norm, f"{prefix}.attention_post_norm", attention)
    normed, residual = _read(
        graph,
        checkpoint,
        described.mlp_norm,
        f"{prefix}.mlp_norm",
        residual=residual,
        delta=attention,
        divisor=layer.mlps[0].gate.column_factor,
    )
    if isinstance(described.mlp, Experts):
        down = apply_experts(graph, layer, described.mlp, normed, rows=rows)
    else:
        down = _feed_forward(graph, plan, layer.mlps[0], normed, prefix, rows=rows)
    return residual, _after(graph, checkpoint, described.mlp_post_norm, f"{prefix}.mlp_post_norm", down)


def _feed_forward(graph: GraphBuilder, plan: ExportPlan, mlp: MlpPlan, normed: str, prefix: str, *, rows: str) -> str:
    if mlp.stacked is None:
        up = multiply(graph, mlp.up, normed, rows=rows)
        gate = multiply(graph, mlp.gate, normed, rows=rows)
    else:
        both = multiply(graph, mlp.stacked, normed, rows=rows)
        sizes = graph.constant("gate_up_sizes", np.array([mlp.gate.num_rows, mlp.up.num_rows], np.int64))
        names = [f"{prefix}.gate", f"{prefix}.up"]
        gate, up = graph.node_with_outputs("Split", [both, sizes], names, axis=1)
    if plan.forms.gate == "one" and mlp.mlp.activation == "silu":
        gated = gate_in_one_pass(graph, gate, up, prefix, width=mlp.up.num_rows)
    else:
        gated = activate(graph, mlp.mlp.activation, gate, up, prefix)
    return multiply(graph, mlp.down, gated, rows=rows)


def _read(
    graph: GraphBuilder,
    checkpoint: Checkpoint,
    norm: Norm | None,
    name: str,
    *,
    residual: str,
    delta: str | None,
    divisor: NDArray[np.float32] | None,
) -> tuple[str, str]:
    """What a branch reads of `residual + delta`, and the sum; a norm takes over the divisor of what reads it."""
    if norm is None:
        # Identity costs nothing, and gives what is read a name of its own
        terms = [residual] if delta is None else [residual, delta]
        total = graph.node("Identity" if delta is None else "Add", terms, f"{name}.residual")
        return total, total
    store_norm(graph, norm, checkpoint, name, divisor=divisor)
    if delta is None:
        return normalize(graph, norm, name, residual), residual
    return add_and_normalize(graph, norm, name, residual, delta)


def _after(graph: GraphBuilder, checkpoint: Checkpoint, norm: Norm | None, name: str, value: str) -> str:
    """What a branch adds."""
    if norm is None:
        return value
    store_norm(graph, norm, checkpoint, name)
    return normalize(graph, norm, name, value)
