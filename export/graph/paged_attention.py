"""Builds the attention of one layer over packed tokens and a paged KV cache, for CUDA. Knows no matrices.

Schema: com.microsoft PagedAttention (onnxruntime-gpu 1.31.1): packed query-key-value input, rotary positions and norms
of heads inside the operator where it can, as nodes before it where it cannot.
"""

from __future__ import annotations

import numpy as np

from ortserve.export.architecture import Attention
from ortserve.export.graph.attention import (
    KV_OPTIONS,
    KV_TYPES,
    attention_options,
    normalize_and_rotate,
    store_kv_scales,
    store_rotary_tables,
    table_names,
)
from ortserve.export.graph.builder import MICROSOFT, GraphBuilder
from ortserve.export.graph.normalize import store_norm
from ortserve.export.recipes.plan import ExportPlan
from ortserve.export.sources.checkpoint import Checkpoint

ROTARY_MULTIPLE = 16  # rotary embedding inside the operator wants head sizes that are its multiples


def declare_inputs(graph: GraphBuilder, plan: ExportPlan) -> None:
    """Shared inputs and tables; see the contract in `ortserve.runtime.manifest`."""
    graph.input("position_ids", np.int64, ["T"])
    graph.input("cumulative_lengths", np.int32, ["B_plus_1"])
    graph.input("past_lengths", np.int32, ["B"])
    graph.input("page_table", np.int32, ["B", "M"])
    graph.input("slot_mapping", np.int32, ["T"])
    graph.input("attention_bounds", np.int32, [3])
    store_rotary_tables(graph, plan)


def attend(
    graph: GraphBuilder, plan: ExportPlan, checkpoint: Checkpoint, index: int, qkv: str, *, only_logits: bool
) -> str:
    """`qkv [T, (heads + 2 kv_heads) head_dim]` to `[T, heads head_dim]`, or of the tokens of `logit_index` only."""
    architecture, prefix = plan.architecture, f"layers.{index}"
    attention = architecture.layers[index].attention
    options = attention_options(attention, architecture.head_dim, plan.max_context)
    tables, norms = ["", ""], ["", ""]
    if _fits_operator(plan, attention):
        if attention.rope is not None:
            tables = list(table_names(architecture, attention.rope))
            options["do_rotary"] = 1
        if attention.norm is not None:
            norms = [f"{prefix}.query_norm", f"{prefix}.key_norm"]
            for name, norm in zip(norms, (attention.norm.query, attention.norm.key), strict=True):
                store_norm(graph, norm, checkpoint, name)
            norms = [f"{name}.weight" for name in norms]
            options["qk_norm_epsilon"] = attention.norm.query.epsilon
    else:
        qkv = normalize_and_rotate(graph, architecture, checkpoint, index, qkv)
    shape: list[str | int] = ["N", plan.page_size or "P", architecture.num_kv_heads, architecture.head_dim]
    stored = KV_TYPES.get(plan.kv, graph.floats)
    past = [graph.input(f"past.{index}.{part}", stored, shape) for part in ("key", "value")]
    scales = ["", ""]
    if plan.kv != "float":
        scales = store_kv_scales(graph, plan, index, (architecture.num_kv_heads, 1, architecture.head_dim))
        options.update(KV_OPTIONS)
    present = [f"present.{index}.{part}" for part in ("key", "value")]
    rows = ["cumulative_lengths", "past_lengths", "page_table"]
    attended, *_ = graph.node_with_outputs(
        "PagedAttention",
        [qkv, "", "", *past, *rows, *tables, "slot_mapping", "", *norms, *scales, "attention_bounds"],
        [f"{prefix}.attended", *present],
        domain=MICROSOFT,
        num_heads=architecture.num_heads,
        kv_num_heads=architecture.num_kv_heads,
        **options,
    )
    for name in present:
        graph.output(name, stored, shape)
    if not only_logits:
        return attended
    return graph.node("Gather", [attended, "logit_index"], f"{prefix}.context", axis=0)


def _fits_operator(plan: ExportPlan, attention: Attention) -> bool:
    """Whether the operator can rotate and normalize by itself: whole heads, and one epsilon for both norms.

    It counts positions itself, from the first row of its tables: it cannot choose between regimes.
    """
    head = plan.architecture.head_dim
    if attention.rope is not None and (
        attention.rope.rotary_dim != head or head % ROTARY_MULTIPLE or len(plan.rotary_bounds) > 1
    ):
        return False
    norm = attention.norm
    return norm is None or (norm.query.width == norm.key.width == head and norm.query.epsilon == norm.key.epsilon)
