"""The manifest of a graph that another exporter made, from its outside and the files beside it. Writes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ortserve.export.errors import ExportError
from ortserve.export.folder.describe import describe_generation, describe_tokens
from ortserve.export.imported.layout import Layout, first_integer
from ortserve.export.imported.outside import Outside
from ortserve.export.proof.integrity import model_digest
from ortserve.export.proof.padded_run import whole_logits
from ortserve.runtime.manifest import FORMAT_VERSION, KvLayout, Manifest
from ortserve.runtime.session import Session

MIN_ONNXRUNTIME = "1.20"  # older ones were never tried; a graph that needs a newer one says so when it is loaded
PROBE = (0, 1, 2)  # tokens that every vocabulary has


def describe_graph(
    folder: Path,
    layout: Layout,
    outside: Outside,
    session: Session,
    *,
    max_context: int | None,
    path: str,
    imported: bool,
) -> Manifest:
    """The manifest; `path` is the way the graph came. Its names and sizes are those of the layout's checkpoint.

    Raises `ExportError` when graph and files do not say together what running it takes.
    """
    checkpoint, config = layout.checkpoint, layout.checkpoint.config
    num_heads = first_integer(config, ("num_attention_heads", "n_head", "num_heads"))
    hidden = first_integer(config, ("hidden_size", "n_embd", "d_model"))
    kv_heads = outside.num_kv_heads or first_integer(config, ("num_key_value_heads",)) or num_heads
    head_dim = outside.head_dim or first_integer(config, ("head_dim",))
    if head_dim is None and hidden is not None and num_heads is not None:
        head_dim = hidden // num_heads
    context = max_context or layout.max_context
    if kv_heads is None or head_dim is None:
        raise ExportError(
            f"{checkpoint.name}: neither graph nor configuration says how many heads of what size are stored"
        )
    if context is None:
        raise ExportError(
            f"{checkpoint.name} does not say how many tokens its model covers: say it with --max-context N"
        )
    if layout.max_context is not None and context > layout.max_context:
        raise ExportError(f"max context {context} is more than {layout.max_context}, the model's own")
    shape = (outside.num_layers, kv_heads, head_dim)
    logits = whole_logits(session, outside.padded, PROBE, cache_shape=shape)
    if not np.isfinite(logits).all():
        raise ExportError(f"{layout.graph} of {checkpoint.name} runs but computes no usable logits: download it again")
    vocab_size = logits.shape[1]
    tokens = describe_tokens(checkpoint, vocab_size)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=checkpoint.name,
        family=str(config.get("model_type") or "unknown"),
        precision=outside.precision,
        digest="",
        graph=layout.graph,
        min_onnxruntime=MIN_ONNXRUNTIME,
        kv=KvLayout("padded", *shape, "float32"),
        hidden_size=hidden or 0,
        num_heads=num_heads or 0,
        vocab_size=vocab_size,
        num_tokens=tokens.num_tokens,
        max_context=context,
        eos_token_ids=tokens.eos_token_ids,
        bos_token_id=tokens.bos_token_id,
        add_bos=tokens.add_bos,
        num_parameters=outside.num_parameters,
        weight_bytes=outside.weight_bytes,
        generation=describe_generation(checkpoint),
        source=checkpoint.source,
        exporter=layout.exporter,
        padded=outside.padded,
        imported=imported,
        path=path,
    )
    return replace(manifest, digest=model_digest(folder, manifest))
