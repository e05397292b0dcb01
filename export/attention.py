"""Builds the attention of one layer over packed tokens: rotary positions, KV cache, padding in and out. Knows no norms.

Schema: com.microsoft GroupQueryAttention with `query_seqlens` (ONNX Runtime 1.32), packed query-key-value input.
Padding exists only between the two Gathers: everything else works on `[T, features]`.
"""

from __future__ import annotations

import numpy as np

from ortserve.export.architecture import Architecture
from ortserve.export.graph_builder import MICROSOFT, GraphBuilder
from ortserve.export.rope import rotary_tables


def declare_attention_inputs(graph: GraphBuilder, architecture: Architecture, max_context: int) -> None:
    """Shared inputs and tables; see the contract in `ortserve.runtime.manifest`."""
    graph.input("position_ids", np.int64, ["T"])
    graph.input("seqlens_k", np.int32, ["B"])
    graph.input("query_lengths", np.int32, ["B"])
    graph.input("total_length", np.int32, [])
    graph.input("pad_index", np.int64, ["B", "S"])
    graph.input("unpad_index", np.int64, ["T"])
    cosine, sine = rotary_tables(architecture.rope, max_context)
    graph.weight("rotary.cosine", np.float32, cosine.shape, [cosine])
    graph.weight("rotary.sine", np.float32, sine.shape, [sine])


def attend(
    graph: GraphBuilder, architecture: Architecture, index: int, qkv: str, *, max_context: int, take: str
) -> str:
    """`qkv [T, (heads + 2 kv_heads) head_dim]` to `[tokens of take, heads head_dim]`.

    `take` names the index `[n]` into the flattened padded result `[B S]`: `unpad_index`, or fewer tokens.
    """
    prefix = f"layers.{index}"
    rotated = _rotate(graph, architecture, prefix, qkv)
    padded = graph.node("Gather", [rotated, "pad_index"], f"{prefix}.padded", axis=0)  # [B, S, features]
    shape: list[str | int] = ["B", architecture.num_kv_heads, "C", architecture.head_dim]
    past = [graph.input(f"past.{index}.{part}", np.float32, shape) for part in ("key", "value")]
    present = [f"present.{index}.{part}" for part in ("key", "value")]
    attributes: dict[str, int] = {}
    if architecture.sliding_window is not None and architecture.sliding_window < max_context:
        attributes["local_window_size"] = architecture.sliding_window
    attended, *_ = graph.node_with_outputs(
        "GroupQueryAttention",
        [padded, "", "", *past, "seqlens_k", "total_length", *([""] * 9), "query_lengths"],
        [f"{prefix}.attended", *present],
        domain=MICROSOFT,
        num_heads=architecture.num_heads,
        kv_num_heads=architecture.num_kv_heads,
        do_rotary=0,
        **attributes,
    )
    for name in present:
        graph.output(name, np.float32, shape)
    width = architecture.num_heads * architecture.head_dim
    flat_shape = graph.constant("attention_width", np.array([-1, width], np.int64))
    flat = graph.node("Reshape", [attended, flat_shape], f"{prefix}.flat")  # [B S, heads head_dim]
    return graph.node("Gather", [flat, take], f"{prefix}.context", axis=0)


def _rotate(graph: GraphBuilder, architecture: Architecture, prefix: str, qkv: str) -> str:
    """Rotate queries and keys, which lie side by side, as one group of heads; values pass.

    Every token is a batch of its own: the operator refuses sequences longer than its tables, and a step may well
    pack more tokens than one context holds.
    """
    head_dim = architecture.head_dim
    num_rotated = architecture.num_heads + architecture.num_kv_heads
    sizes = np.array([num_rotated * head_dim, architecture.num_kv_heads * head_dim], np.int64)
    split = graph.constant("qkv_sizes", sizes)
    query_key, value = graph.node_with_outputs(
        "Split", [qkv, split], [f"{prefix}.query_key", f"{prefix}.value"], axis=1
    )
    axis = graph.constant("sequence_axis", np.array([1], np.int64))
    batched = graph.node("Unsqueeze", [query_key, axis], f"{prefix}.query_key_batch")  # [T, 1, features]
    positions = graph.shared(
        "position_batch", lambda: graph.node("Unsqueeze", ["position_ids", axis], "position_batch")
    )
    partial: dict[str, int] = {}
    if architecture.rope.rotary_dim != head_dim:
        partial = {"num_heads": num_rotated, "rotary_embedding_dim": architecture.rope.rotary_dim}
    rotated = graph.node(
        "RotaryEmbedding",
        [batched, positions, "rotary.cosine", "rotary.sine"],
        f"{prefix}.rotated_batch",
        domain=MICROSOFT,
        interleaved=0,
        **partial,
    )
    flat = graph.node("Squeeze", [rotated, axis], f"{prefix}.rotated")
    return graph.node("Concat", [flat, value], f"{prefix}.qkv_rotated", axis=1)
