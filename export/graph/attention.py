"""Builds the attention of one layer over packed tokens: norms of heads, rotary positions, KV cache, padding.

Schema: com.microsoft GroupQueryAttention with `query_seqlens` (ONNX Runtime 1.32), packed query-key-value input.
Padding exists only between the two Gathers: everything else works on `[T, features]`. Knows no matrices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from ortserve.export.architecture import Architecture, Attention, Norm, Rope
from ortserve.export.errors import ExportError
from ortserve.export.graph.builder import MICROSOFT, GraphBuilder
from ortserve.export.graph.normalize import normalize, store_norm
from ortserve.export.graph.rope import rotary_tables
from ortserve.export.recipes.plan import ExportPlan
from ortserve.export.recipes.precisions import KvPrecision
from ortserve.export.sources.checkpoint import Checkpoint

KV_TYPES: Mapping[KvPrecision, type[np.generic]] = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}
KV_OPTIONS: Mapping[str, str] = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}


def declare_attention_inputs(graph: GraphBuilder, plan: ExportPlan) -> None:
    """Shared inputs and tables; see the contract in `ortserve.runtime.manifest`."""
    graph.input("position_ids", np.int64, ["T"])
    graph.input("seqlens_k", np.int32, ["B"])
    graph.input("query_lengths", np.int32, ["B"])
    graph.input("total_length", np.int32, [])
    graph.input("pad_index", np.int64, ["B", "S"])
    graph.input("unpad_index", np.int64, ["T"])
    store_rotary_tables(graph, plan)


def store_rotary_tables(graph: GraphBuilder, plan: ExportPlan) -> None:
    """Cosines and sines of every rotary embedding, `[R, rotary_dim / 2]`: one table for each regime, stacked."""
    for rope in plan.architecture.ropes():
        tables = [rotary_tables(rope, bound) for bound in plan.rotary_bounds]
        for name, parts in zip(table_names(plan.architecture, rope), zip(*tables, strict=True), strict=True):
            graph.weight(name, graph.floats, (sum(plan.rotary_bounds), rope.rotary_dim // 2), parts)


def attend(
    graph: GraphBuilder, plan: ExportPlan, checkpoint: Checkpoint, index: int, qkv: str, *, only_logits: bool
) -> str:
    """`qkv [T, (heads + 2 kv_heads) head_dim]` to `[T, heads head_dim]`, or of the tokens of `logit_index` only."""
    take = "unpad_index"  # an index into the flattened padded result [B S]
    if only_logits:
        take = graph.node("Gather", ["unpad_index", "logit_index"], "logit_unpad_index", axis=0)
    architecture, prefix = plan.architecture, f"layers.{index}"
    placed = normalize_and_rotate(graph, architecture, checkpoint, index, qkv)
    padded = graph.node("Gather", [placed, "pad_index"], f"{prefix}.padded", axis=0)  # [B, S, features]
    shape: list[str | int] = ["B", architecture.num_kv_heads, "C", architecture.head_dim]
    stored = KV_TYPES.get(plan.kv, np.float32)
    past = [graph.input(f"past.{index}.{part}", stored, shape) for part in ("key", "value")]
    options = attention_options(architecture.layers[index].attention, architecture.head_dim, plan.max_context)
    scales = ["", ""]
    if plan.kv != "float":
        scales = store_kv_scales(graph, plan, index, (1, architecture.num_kv_heads, 1, architecture.head_dim))
        options.update(KV_OPTIONS, kv_cache_bit_width=8)
    present = [f"present.{index}.{part}" for part in ("key", "value")]
    attended, *_ = graph.node_with_outputs(
        "GroupQueryAttention",
        [padded, "", "", *past, "seqlens_k", "total_length", *([""] * 5), *scales, "", "", "query_lengths"],
        [f"{prefix}.attended", *present],
        domain=MICROSOFT,
        num_heads=architecture.num_heads,
        kv_num_heads=architecture.num_kv_heads,
        do_rotary=0,
        **options,
    )
    for name in present:
        graph.output(name, stored, shape)
    flat_shape = graph.constant("attention_width", np.array([-1, architecture.query_size], np.int64))
    flat = graph.node("Reshape", [attended, flat_shape], f"{prefix}.flat")  # [B S, heads head_dim]
    return graph.node("Gather", [flat, take], f"{prefix}.context", axis=0)


def store_kv_scales(graph: GraphBuilder, plan: ExportPlan, index: int, shape: tuple[int, ...]) -> list[str]:
    """What a code of keys and of values stands for, in a layer's shape; the names of both."""
    if not plan.kv_scales:  # planned for its size alone
        raise ExportError(f"--kv {plan.kv} needs scales: calibrate first")
    scales, prefix = plan.kv_scales[index], f"layers.{index}"
    names = [f"{prefix}.key_scale", f"{prefix}.value_scale"]
    for name, scale in zip(names, (scales.key, scales.value), strict=True):
        graph.weight(name, np.float32, shape, [scale.reshape(shape)])
    return names


def attention_options(attention: Attention, head_dim: int, max_context: int) -> dict[str, int | float | str]:
    """The operator's attributes that differ from its defaults."""
    options: dict[str, int | float | str] = {}
    if attention.window is not None and attention.window < max_context:
        options["local_window_size"] = attention.window
    if not math.isclose(attention.scale, head_dim**-0.5):
        options["scale"] = attention.scale
    if attention.softcap is not None:
        options["softcap"] = attention.softcap
    return options


def normalize_and_rotate(
    graph: GraphBuilder, architecture: Architecture, checkpoint: Checkpoint, index: int, qkv: str
) -> str:
    """Queries and keys, which lie side by side, as one group of heads; values pass."""
    attention, prefix = architecture.layers[index].attention, f"layers.{index}"
    if attention.rope is None and attention.norm is None:
        return qkv
    query, key = architecture.query_size, architecture.key_size
    if attention.norm is None:
        split = graph.constant("qkv_sizes", np.array([query + key, key], np.int64))
        together, value = graph.node_with_outputs(
            "Split", [qkv, split], [f"{prefix}.query_key", f"{prefix}.value"], axis=1
        )
    else:
        split = graph.constant("query_key_value_sizes", np.array([query, key, key], np.int64))
        names = [f"{prefix}.query", f"{prefix}.key", f"{prefix}.value"]
        queries, keys, value = graph.node_with_outputs("Split", [qkv, split], names, axis=1)
        normed = [
            _normalize_heads(graph, checkpoint, norm, part, size=size)
            for norm, part, size in ((attention.norm.query, queries, query), (attention.norm.key, keys, key))
        ]
        together = graph.node("Concat", normed, f"{prefix}.query_key", axis=1)
    if attention.rope is not None:
        together = _rotate(graph, architecture, attention.rope, prefix, together)
    return graph.node("Concat", [together, value], f"{prefix}.qkv_rotated", axis=1)


def _normalize_heads(graph: GraphBuilder, checkpoint: Checkpoint, norm: Norm, value: str, *, size: int) -> str:
    """`value [T, size]` in groups of the norm's width: one group is a head, or the whole projection.

    The attention operator has inputs for such norms, but its CPU kernel refuses them.
    """
    store_norm(graph, norm, checkpoint, f"{value}_norm")
    if norm.width == size:
        return normalize(graph, norm, f"{value}_norm", value)
    heads = graph.constant(f"heads_of_{norm.width}", np.array([0, -1, norm.width], np.int64))
    apart = graph.node("Reshape", [value, heads], f"{value}_heads")  # [T, heads, width]
    normed = normalize(graph, norm, f"{value}_norm", apart)
    flat = graph.constant(f"flat_{size}", np.array([-1, size], np.int64))
    return graph.node("Reshape", [normed, flat], f"{value}_normed")


def _rotate(graph: GraphBuilder, architecture: Architecture, rope: Rope, prefix: str, query_key: str) -> str:
    """Every token is a batch of its own: the operator refuses sequences longer than its tables, and a step may well
    pack more tokens than one context holds.
    """
    axis = graph.constant("sequence_axis", np.array([1], np.int64))
    batched = graph.node("Unsqueeze", [query_key, axis], f"{prefix}.query_key_batch")  # [T, 1, features]
    positions = graph.shared(
        "position_batch", lambda: graph.node("Unsqueeze", ["position_ids", axis], "position_batch")
    )
    partial: dict[str, int] = {}
    if rope.rotary_dim != architecture.head_dim:
        num_rotated = architecture.num_heads + architecture.num_kv_heads
        partial = {"num_heads": num_rotated, "rotary_embedding_dim": rope.rotary_dim}
    rotated = graph.node(
        "RotaryEmbedding",
        [batched, positions, *table_names(architecture, rope)],
        f"{prefix}.rotated_batch",
        domain=MICROSOFT,
        interleaved=0,
        **partial,
    )
    return graph.node("Squeeze", [rotated, axis], f"{prefix}.rotated")


def table_names(architecture: Architecture, rope: Rope) -> tuple[str, str]:
    """Of the cosines and the sines; the first rotary embedding of a model has no number."""
    place = architecture.ropes().index(rope)
    middle = f".{place}" if place else ""
    return f"rotary{middle}.cosine", f"rotary{middle}.sine"
