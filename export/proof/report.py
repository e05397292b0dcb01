"""Writes the proof of an exported folder into it: `report.json` for programs, the model card for people.

Each appears by a rename, the report last: a folder without one is unverified, never half described. Measures nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ortserve.export.errors import ExportError, UnprovenError
from ortserve.export.folder.versions import library_versions
from ortserve.export.proof.card import model_card
from ortserve.export.proof.verdict import all_pass, check_encoder_proof, check_parity_report, failures
from ortserve.export.sources.source_facts import SourceFacts
from ortserve.runtime.encoders.manifest import EncoderManifest
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.parity import EncoderProof, ParityReport
from ortserve.runtime.report import CARD_NAME, REPORT_NAME, REPORT_VERSION, Report, is_verified, list_files, report_json

NOT_MEASURED = "it was exported without verification"


def make_report(
    folder: Path,
    manifest: Manifest | EncoderManifest,
    proof: ParityReport | EncoderProof | None,
    *,
    source: SourceFacts,
    known: Mapping[str, str] | None = None,
    optimum_versions: Mapping[str, str] | None = None,
    doubts: tuple[str, ...] = (),
) -> Report:
    """The report of a folder that is complete but for it.

    `known` are SHA-256 sums of files that need no reading, `optimum_versions` those of the libraries in optimum's
    environment, where graph and reference come from: some are ours too, in another version. `doubts` are reasons
    beside the proof's own why the folder is not verified; without a proof it never is.
    """
    decoder = proof if isinstance(proof, ParityReport) else None
    encoder = proof if isinstance(proof, EncoderProof) else None
    checks = check_parity_report(decoder) if decoder else check_encoder_proof(encoder) if encoder else ()
    findings = (*(failures(checks) if proof else (NOT_MEASURED,)), *doubts)
    return Report(
        report_version=REPORT_VERSION,
        verified=proof is not None and proof.passed and all_pass(checks) and not findings,
        findings=findings,
        name=manifest.name,
        kind=manifest.kind,
        precision=manifest.precision,
        source=manifest.source,
        source_digest=source.digest,
        digest=manifest.digest,
        num_parameters=manifest.num_parameters,
        weight_bytes=manifest.weight_bytes,
        bits_per_weight=round(8 * manifest.weight_bytes / max(1, manifest.num_parameters), 3),
        versions={**library_versions(), **(decoder.libraries if decoder and not optimum_versions else {})},
        files=list_files(folder, known),
        checks=checks,
        parity=decoder,
        encoder=encoder,
        license=source.license,
        path=manifest.via if isinstance(manifest, EncoderManifest) else manifest.path,
        optimum_versions=optimum_versions or {},
    )


def write_report(folder: Path, manifest: Manifest | EncoderManifest, report: Report) -> None:
    """Report, and card unless the folder is another exporter's. Raises `ExportError` when it cannot be written."""
    try:
        if not (isinstance(manifest, Manifest) and manifest.imported):
            _replace(folder / CARD_NAME, model_card(manifest, report).encode())
        _replace(folder / REPORT_NAME, report_json(report))
    except OSError as error:
        raise ExportError(
            f"{folder / REPORT_NAME} cannot be written ({error.strerror or error}): free space, or check permissions"
        ) from error


def with_doubts(report: Report, doubts: tuple[str, ...]) -> Report:
    """The same report, marked unverified."""
    more = tuple(doubt for doubt in doubts if doubt not in report.findings)
    return replace(report, verified=False, findings=(*report.findings, *more))


def check_replacement(report: Report, destination: Path) -> None:
    """Raise `UnprovenError` when the new folder would take the place of one that is verified, and is not itself."""
    if not report.verified and is_verified(destination):
        raise UnprovenError(f"{_difference(report)}; {destination} keeps the verified export that it holds")


def check_proved(report: Report, destination: Path) -> None:
    """Raise `UnprovenError` when the folder that was just written is not verified."""
    if not report.verified:
        raise UnprovenError(f"{_difference(report)}; {destination} is marked unverified", destination)


def _difference(report: Report) -> str:
    return (
        f"{report.name} in {report.precision} differs from the reference: {', '.join(report.findings)}:"
        " choose a higher precision, or accept it with --allow-unproven"
    )


def _replace(path: Path, content: bytes) -> None:
    written = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        written.write_bytes(content)
        written.rename(path)
    finally:
        written.unlink(missing_ok=True)
