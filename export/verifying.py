"""`ortserve verify`: a folder is compared with its report, or measured again and its report renewed. Prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ortserve.export.errors import CheckFailedError, ExportError
from ortserve.export.families import read_architecture
from ortserve.export.imported.layout import read_layout
from ortserve.export.imported.publish import compare_with_source
from ortserve.export.optimum.decoders import is_through_optimum
from ortserve.export.optimum.reference import optimum_reference
from ortserve.export.proof.integrity import check_adapter, check_integrity
from ortserve.export.proof.report import make_report, with_doubts, write_report
from ortserve.export.proof.verify import check_parity, compare_with
from ortserve.export.recipes.precisions import ReferenceName
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.source_facts import SourceFacts, describe_folder, describe_source
from ortserve.runtime.encoders.manifest import EncoderManifest, read_any_manifest
from ortserve.runtime.errors import ModelError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.parity import EncoderProof, ParityReport
from ortserve.runtime.report import Report, find_doubts, is_verified, read_report


def verify_folder(folder: Path, checkpoint: Checkpoint | None, *, reference: ReferenceName = "auto") -> Report:
    """The report of a decoder's folder that is whole; with a checkpoint, of a proof made now.

    Raises `CheckFailedError` for damage, which also marks the folder unverified, `ReportError` for a folder without
    report and checkpoint, and `ExportError` for another model's checkpoint.
    """
    try:
        manifest = check_integrity(folder)
    except CheckFailedError as error:
        mark_unverified(folder, str(error))
        raise
    if checkpoint is None:
        return repeat_report(folder, manifest)
    if is_through_optimum(manifest):
        return _measure_through_optimum(folder, manifest, checkpoint)
    check_adapter(folder, manifest, checkpoint)
    try:
        if manifest.imported:
            described = read_layout(folder, graph=manifest.graph).checkpoint
            proof = compare_with_source(folder, manifest, described, checkpoint, reference=reference)
        else:
            proof = check_parity(folder, manifest, read_architecture(checkpoint), checkpoint, reference=reference)
    except CheckFailedError as error:
        mark_unverified(folder, str(error))
        raise
    return renew_report(folder, manifest, proof, source=describe_source(checkpoint))


def _measure_through_optimum(folder: Path, manifest: Manifest, checkpoint: Checkpoint) -> Report:
    """Against transformers in optimum's environment, with the folder's own tokenizer."""
    reference = optimum_reference(checkpoint.folder, manifest, progress=True)
    proof = compare_with(folder, manifest, read_layout(folder).checkpoint, reference)
    return renew_report(
        folder, manifest, proof, source=describe_folder(checkpoint.folder), optimum_versions=reference.libraries
    )


def repeat_report(folder: Path, manifest: Manifest | EncoderManifest) -> Report:
    """The report as it stands, marked unverified when any file differs from it. Raises `ReportError`."""
    report = read_report(folder)
    doubts = tuple(find_doubts(folder, digest=manifest.digest, thorough=True))
    if not doubts:
        return report
    marked = with_doubts(report, doubts)
    if report.verified:
        with suppress(ExportError):  # a read-only folder: the status says it
            write_report(folder, manifest, marked)
    return marked


def renew_report(
    folder: Path,
    manifest: Manifest | EncoderManifest,
    proof: ParityReport | EncoderProof,
    *,
    source: SourceFacts,
    optimum_versions: Mapping[str, str] | None = None,
) -> Report:
    """The report of a proof made now, written in place of the old one where the folder can be written."""
    report = make_report(folder, manifest, proof, source=source, optimum_versions=optimum_versions)
    try:
        write_report(folder, manifest, report)
    except ExportError:
        if is_verified(folder) != report.verified:  # otherwise the old one says the same, and the folder is read-only
            raise
    return report


def mark_unverified(folder: Path, reason: str) -> None:
    """So that no server takes it for what was proved. Does nothing where there is no report."""
    with suppress(ModelError):
        manifest = read_any_manifest(folder)
        report = read_report(folder)
        if report.verified:
            write_report(folder, manifest, with_doubts(report, (reason,)))
