"""Writes a manifest and a report beside a foreign graph, or nothing at all. Knows the order of work.

No other file of the folder is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ortserve.export.checkpoint import Checkpoint
from ortserve.export.describe import describe_generation, describe_tokens
from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.imported.layout import Layout, first_integer, read_layout
from ortserve.export.imported.outside import Outside, read_outside
from ortserve.export.integrity import model_digest
from ortserve.export.limits import LIMITS
from ortserve.export.new_folder import write_whole
from ortserve.export.padded_run import open_session, whole_logits
from ortserve.export.reference import Floats, Watch
from ortserve.export.references import Reference
from ortserve.export.report import make_report, write_report
from ortserve.export.source_facts import SourceFacts, describe_source
from ortserve.export.verify import check_parity, compare_with
from ortserve.runtime.manifest import FORMAT_VERSION, MANIFEST_NAME, KvLayout, Manifest, manifest_json
from ortserve.runtime.report import Report
from ortserve.runtime.session import Session

MIN_ONNXRUNTIME = "1.20"  # older ones were never tried; a graph that needs a newer one says so when it is loaded
PROBE = (0, 1, 2)  # tokens that every vocabulary has
SELF = "the graph itself, each text in one call without a cache"
UNPROVED = (
    "no checkpoint was named (--source): it was compared with itself only, and whether it computes what its model"
    " should is not known"
)


def import_folder(
    folder: Path,
    *,
    source: Checkpoint | None = None,
    graph: str | None = None,
    name: str | None = None,
    max_context: int | None = None,
    force: bool = False,
) -> Report:
    """Write `manifest.json` and `report.json` into the folder; what was measured, and what could not be.

    With `source`, the checkpoint it was made from, against its reference; else against itself, which leaves the folder
    unverified. Raises `ExportError`, and writes nothing, for what cannot be served and for a folder that has a manifest
    without `force`.
    """
    if (folder / MANIFEST_NAME).exists() and not force:
        raise ExportError(f"{folder} has a {MANIFEST_NAME} already: serve it, or import it again with --force")
    layout = read_layout(folder, graph=graph, name=name)
    outside = read_outside(folder / layout.graph, layout.names)
    _check_files(folder, layout, outside)
    session = open_session(folder / layout.graph)
    manifest = _describe(folder, layout, outside, session, max_context)
    if source is None:
        # rounding is the same on both sides: what is left of it comes from rows that share a kernel
        limits = LIMITS["fp32" if manifest.precision == "fp32" else "int8"]
        parity = compare_with(folder, manifest, layout.checkpoint, itself(manifest, session), limits=limits)
        facts: SourceFacts = SourceFacts()
        doubts: tuple[str, ...] = (UNPROVED,)
    else:
        manifest = replace(manifest, source=source.source)
        parity = check_parity(folder, manifest, read_architecture(source), source)
        facts, doubts = describe_source(source), ()
    write_whole(folder / MANIFEST_NAME, manifest_json(manifest))
    report = make_report(folder, manifest, parity, source=facts, doubts=doubts)
    write_report(folder, manifest, report)
    return report


def itself(manifest: Manifest, session: Session) -> Reference:
    """What the graph computes of a whole text at once: no cache, no padding, no neighbour."""
    padded, kv = manifest.padded, manifest.kv
    assert padded is not None
    shape = (kv.num_layers, kv.num_kv_heads, kv.head_dim)

    def compute(texts: Sequence[Sequence[int]], _: Watch | None) -> list[Floats]:
        return [whole_logits(session, padded, tokens, cache_shape=shape) for tokens in texts]

    return Reference(SELF, compute)


def _check_files(folder: Path, layout: Layout, outside: Outside) -> None:
    for name in outside.data_files:
        path = (folder / layout.graph).parent / name
        if Path(name).name != name or not path.is_file():
            raise ExportError(f"{folder / layout.graph} has weights in {name}, which is not beside it: download it too")


def _describe(folder: Path, layout: Layout, outside: Outside, session: Session, max_context: int | None) -> Manifest:
    checkpoint, config = layout.checkpoint, layout.checkpoint.config
    num_heads = first_integer(config, ("num_attention_heads", "n_head", "num_heads"))
    hidden = first_integer(config, ("hidden_size", "n_embd", "d_model"))
    kv_heads = outside.num_kv_heads or first_integer(config, ("num_key_value_heads",)) or num_heads
    head_dim = outside.head_dim or first_integer(config, ("head_dim",))
    if head_dim is None and hidden is not None and num_heads is not None:
        head_dim = hidden // num_heads
    context = max_context or layout.max_context
    if kv_heads is None or head_dim is None:
        raise ExportError(f"{folder}: neither graph nor configuration says how many heads of what size are stored")
    if context is None:
        raise ExportError(f"{folder} does not say how many tokens its model covers: say it with --max-context N")
    if layout.max_context is not None and context > layout.max_context:
        raise ExportError(f"max context {context} is more than {layout.max_context}, the model's own")
    shape = (outside.num_layers, kv_heads, head_dim)
    logits = whole_logits(session, outside.padded, PROBE, cache_shape=shape)
    if not np.isfinite(logits).all():
        raise ExportError(f"{folder / layout.graph} runs but computes no usable logits: download it again")
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
        imported=True,
        path=f"imported from {layout.exporter}: run in padded batches, its keys and values copied in and out",
    )
    return replace(manifest, digest=model_digest(folder, manifest))
