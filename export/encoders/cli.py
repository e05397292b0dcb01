"""The verbs export, verify and inspect for encoders. Knows arguments and what is printed, not how it is done."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ortserve.export.errors import CheckFailedError
from ortserve.export.options import GENERATE
from ortserve.export.printing import print_failure, print_json, print_text, print_verdict, run_and_print

if TYPE_CHECKING:
    from ortserve.runtime.encoders.manifest import EncoderManifest
    from ortserve.runtime.report import Report

DEFAULT_PRECISION = "int8"
TASKS = (GENERATE, "embeddings", "rerank")


def add_encoder_arguments(parser: ArgumentParser) -> None:
    """Options of `ortserve export` for encoders."""
    parser.add_argument(
        "--task",
        choices=TASKS,
        default=GENERATE,
        help="embeddings or rerank: an encoder, through optimum in an environment of its own (default: generate)",
    )
    parser.add_argument("--name", help="embeddings and rerank: what the model is called (default: its checkpoint's)")
    parser.add_argument(
        "--dimensions",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="embeddings only: shorter sizes the model was trained for, besides those its files state",
    )


def is_encoder(folder: Path) -> bool:
    """Whether an exported folder holds an encoder. Raises `ManifestError` when there is no readable manifest."""
    from ortserve.runtime.manifest import read_head

    return read_head(folder)[1].kind == "encoder"


def run_encoder_export(arguments: Namespace) -> int:
    """Prints the report, or with --json manifest and report; 1 when the proof fails."""
    from ortserve.export.encoders.publish import export_encoder

    def export() -> None:
        export_encoder(
            arguments.source,
            arguments.destination,
            task=arguments.task,
            name=arguments.name,
            precision=arguments.precision or DEFAULT_PRECISION,
            dimensions=arguments.dimensions,
            force=arguments.force,
            allow_unproven=arguments.allow_unproven,
        )

    return run_and_print(export, arguments.destination, as_json=arguments.json)


def run_encoder_verify(arguments: Namespace) -> int:
    """Prints the report and the verdict, which is the exit status."""
    from ortserve.export.encoders.report import check_encoder
    from ortserve.export.verifying import mark_unverified, repeat_report

    folder = arguments.folder
    try:
        manifest = check_encoder(folder)
    except CheckFailedError as error:
        mark_unverified(folder, str(error))
        return print_failure(error)
    measured = arguments.against is not None
    report = _measure(folder, manifest, arguments.against) if measured else repeat_report(folder, manifest)
    return print_verdict(folder, report, measured=measured, as_json=arguments.json)


def _measure(folder: Path, manifest: EncoderManifest, against: str) -> Report:
    from ortserve.export.encoders.bridge import export_through_optimum
    from ortserve.export.encoders.proof import prove
    from ortserve.export.encoders.proof_texts import PAIRS, TEXTS
    from ortserve.export.sources.checkpoint import foreign_folder
    from ortserve.export.sources.source_facts import describe_folder
    from ortserve.export.verifying import renew_report

    checkpoint, _ = foreign_folder(against)
    with TemporaryDirectory(prefix="ortserve-optimum-") as scratch:
        made = export_through_optimum(checkpoint, Path(scratch), manifest.task, texts=TEXTS, pairs=PAIRS)
        reference = f"sentence-transformers {made.libraries['sentence-transformers']} in float32"
        proof = prove(folder, manifest, reference=made.reference, texts=TEXTS, pairs=PAIRS, against=reference)
    return renew_report(folder, manifest, proof, source=describe_folder(checkpoint), optimum_versions=made.libraries)


def run_encoder_inspect(arguments: Namespace) -> int:
    """Prints the facts as aligned lines, or with --json manifest and report."""
    from ortserve.export.encoders.report import describe_encoder
    from ortserve.export.inspect.inspection import find_report
    from ortserve.runtime.encoders.manifest import read_encoder_manifest

    manifest, report = read_encoder_manifest(arguments.folder), find_report(arguments.folder)
    if arguments.json:
        return print_json({"manifest": manifest, "report": report})
    return print_text(describe_encoder(manifest, report))
