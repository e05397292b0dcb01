"""A report for folders that tests make by hand: graphs that compute what a few lines of Python predict."""

from __future__ import annotations

from pathlib import Path

from ortserve.runtime.encoders.manifest import read_any_manifest
from ortserve.runtime.report import REPORT_NAME, REPORT_VERSION, Report, list_files, report_json


def write_test_report(folder: Path) -> None:
    """The folder as it is now counts as proved; call it last."""
    manifest = read_any_manifest(folder)
    report = Report(
        report_version=REPORT_VERSION,
        verified=True,
        findings=(),
        name=manifest.name,
        kind=manifest.kind,
        precision=manifest.precision,
        source="",
        source_digest="",
        digest=manifest.digest,
        num_parameters=manifest.num_parameters,
        weight_bytes=manifest.weight_bytes,
        bits_per_weight=0.0,
        versions={},
        files=list_files(folder),
    )
    (folder / REPORT_NAME).write_bytes(report_json(report))
