"""What the exporter's verbs print, as text or JSON. Knows no arguments; NumPy and ONNX are not imported here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from ortserve.export.errors import CheckFailedError
    from ortserve.runtime.report import Report


def print_text(text: str) -> int:
    """Status 0."""
    sys.stdout.write(text)
    return 0


def print_json(value: object) -> int:
    """Indented; status 0."""
    return print_text(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_failure(error: CheckFailedError) -> int:
    """One line on standard error; status 1."""
    sys.stderr.write(f"ortserve: {error}\n")
    return 1


def run_and_print(export: Callable[[], object], folder: Path, *, as_json: bool) -> int:
    """Do it, and print what was made; status 1 when its proof fails, whether the folder was kept or not."""
    from ortserve.export.errors import CheckFailedError, UnprovenError

    try:
        export()
    except CheckFailedError as error:
        if isinstance(error, UnprovenError) and error.folder is not None:
            print_export(error.folder, as_json=as_json)
        return print_failure(error)
    return print_export(folder, as_json=as_json)


def print_export(folder: Path, *, as_json: bool) -> int:
    """What was made and how it was proved."""
    from ortserve.export.proof.report_text import describe_report
    from ortserve.runtime.encoders.manifest import EncoderManifest, read_any_manifest
    from ortserve.runtime.report import read_report

    manifest, report = read_any_manifest(folder), read_report(folder)
    if as_json:
        return print_json({"manifest": manifest, "report": report})
    size = f"{manifest.num_parameters:,} parameters, {manifest.weight_bytes / 1e6:,.1f} MB"
    notes = [f"note: {note}" for note in manifest.notes] if isinstance(manifest, EncoderManifest) else []
    lines = [f"{folder}: {manifest.name} in {manifest.precision}, {size}", *notes, *describe_report(report)]
    return print_text("\n".join(lines) + "\n")


def print_verdict(folder: Path, report: Report, *, measured: bool, as_json: bool) -> int:
    """The report, and as exit status whether the folder is verified."""
    from ortserve.export.proof.report_text import describe_report

    if as_json:
        print_json(report)
    else:
        when = "measured now" if measured else "as reported, not measured again: name the checkpoint with --against"
        lines = [f"{folder}: {report.name} is whole, digest {report.digest}, and loads; {when}"]
        print_text("\n".join([*lines, *describe_report(report)]) + "\n")
    return 0 if report.verified else 1
