"""Writes a manifest and a report beside a foreign graph, or nothing at all. Knows the order of work.

No other file of the folder is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ortserve.export.errors import ExportError, UnreadableError
from ortserve.export.families import has_builder, read_architecture
from ortserve.export.float_reference.forward import Floats, Watch
from ortserve.export.folder.new_folder import write_whole
from ortserve.export.imported.description import describe_graph
from ortserve.export.imported.layout import read_layout
from ortserve.export.imported.outside import check_data_files, read_outside
from ortserve.export.proof.limits import LIMITS
from ortserve.export.proof.padded_run import open_session, whole_logits
from ortserve.export.proof.references import Reference, open_outside_reference
from ortserve.export.proof.report import make_report, write_report
from ortserve.export.proof.verify import check_parity, compare_with
from ortserve.export.recipes.precisions import ReferenceName
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.source_facts import SourceFacts, describe_source
from ortserve.runtime.manifest import MANIFEST_NAME, Manifest, manifest_json
from ortserve.runtime.parity import ParityReport
from ortserve.runtime.report import Report
from ortserve.runtime.session import Session

SELF = "the graph itself, each text in one call without a cache"
UNPROVED = (
    "no checkpoint was named (--source): it was compared with itself only, and whether it computes what its model"
    " should is not known"
)
NO_REFERENCE = (
    "{name} has no builder here, so its reference is transformers' own, and it gave none ({reason}): the graph was"
    " compared with itself only"
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

    With `source`, the checkpoint it was made from, against its reference, which of a model that has no builder here is
    transformers'. Where there is none, against itself, which leaves the folder unverified. Raises `ExportError`, and
    writes nothing, for what cannot be served and for a folder that has a manifest without `force`.
    """
    if (folder / MANIFEST_NAME).exists() and not force:
        raise ExportError(f"{folder} has a {MANIFEST_NAME} already: serve it, or import it again with --force")
    layout = read_layout(folder, graph=graph, name=name)
    outside = read_outside(folder / layout.graph, layout.names)
    check_data_files(folder / layout.graph, outside)
    session = open_session(folder / layout.graph)
    manifest = describe_graph(
        folder,
        layout,
        outside,
        session,
        max_context=max_context,
        path=f"imported from {layout.exporter}: run in padded batches, its keys and values copied in and out",
        imported=True,
    )
    facts, parity = SourceFacts(), None
    doubts: tuple[str, ...] = (UNPROVED,)
    if source is not None:
        manifest = replace(manifest, source=source.source)
        facts, doubts = describe_source(source), ()
        try:
            parity = compare_with_source(folder, manifest, layout.checkpoint, source)
        except UnreadableError as error:
            doubts = (NO_REFERENCE.format(name=source.name, reason=error),)
    if parity is None:
        # rounding is the same on both sides: what is left of it comes from rows that share a kernel
        limits = LIMITS["fp32" if manifest.precision == "fp32" else "int8"]
        parity = compare_with(folder, manifest, layout.checkpoint, itself(manifest, session), limits=limits)
    write_whole(folder / MANIFEST_NAME, manifest_json(manifest))
    report = make_report(folder, manifest, parity, source=facts, doubts=doubts)
    write_report(folder, manifest, report)
    return report


def compare_with_source(
    folder: Path, manifest: Manifest, described: Checkpoint, source: Checkpoint, *, reference: ReferenceName = "auto"
) -> ParityReport:
    """The proof of an imported graph; `described` is its own folder, whose tokenizer it has.

    Raises `UnreadableError` for a model that has no builder here where transformers is missing or cannot read it.
    """
    if has_builder(source):
        return check_parity(folder, manifest, read_architecture(source), source, reference=reference)
    if reference == "numpy":
        raise ExportError(f"there is no NumPy reference of {source.name}, which has no builder here: leave it out")
    return compare_with(folder, manifest, described, open_outside_reference(source, vocab_size=manifest.vocab_size))


def itself(manifest: Manifest, session: Session) -> Reference:
    """What the graph computes of a whole text at once: no cache, no padding, no neighbour."""
    padded, kv = manifest.padded, manifest.kv
    assert padded is not None
    shape = (kv.num_layers, kv.num_kv_heads, kv.head_dim)

    def compute(texts: Sequence[Sequence[int]], _: Watch | None) -> list[Floats]:
        return [whole_logits(session, padded, tokens, cache_shape=shape) for tokens in texts]

    return Reference(SELF, compute)
