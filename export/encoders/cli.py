"""The verbs export, verify and inspect for encoders. Knows arguments and what is printed, not how it is done."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from ortserve.export.errors import CheckFailedError, ExportError

GENERATE = "generate"
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
    """Prints the proof, or with --json the manifest."""
    from ortserve.export.encoders.publish import export_encoder
    from ortserve.export.encoders.report import describe_proof

    for name in ("block_size", "max_context"):
        if getattr(arguments, name) is not None:
            raise ExportError(f"--{name.replace('_', '-')} is for models that generate: leave it out")
    if arguments.no_verify:
        raise ExportError("--no-verify saves nothing here, since the reference comes with the graph: leave it out")
    try:
        manifest = export_encoder(
            arguments.source,
            arguments.destination,
            task=arguments.task,
            name=arguments.name,
            precision=arguments.precision or DEFAULT_PRECISION,
            dimensions=arguments.dimensions,
            force=arguments.force,
            allow_unproven=arguments.allow_unproven,
        )
    except CheckFailedError as error:
        return _failed(error)
    if arguments.json:
        return _print_json(manifest)
    size = f"{manifest.num_parameters:,} parameters, {manifest.weight_bytes / 1e6:,.1f} MB"
    notes = [f"note: {note}" for note in manifest.notes]
    lines = [f"{arguments.destination}: {manifest.name} in {manifest.precision}, {size}", *notes]
    return _print("\n".join([*lines, *describe_proof(manifest.proof)]) + "\n")


def run_encoder_verify(arguments: Namespace) -> int:
    """Prints the verdict, or with --json the proof (null without --against)."""
    from ortserve.export.checkpoint import encoder_folder
    from ortserve.export.encoders.bridge import export_through_optimum
    from ortserve.export.encoders.proof import prove
    from ortserve.export.encoders.proof_texts import PAIRS, TEXTS
    from ortserve.export.encoders.report import check_encoder, describe_proof

    try:
        manifest = check_encoder(arguments.folder)
    except CheckFailedError as error:
        return _failed(error)
    proof = None
    if arguments.against is not None:
        checkpoint, _ = encoder_folder(arguments.against)
        with TemporaryDirectory(prefix="ortserve-optimum-") as scratch:
            made = export_through_optimum(checkpoint, Path(scratch), manifest.task, texts=TEXTS, pairs=PAIRS)
            against = f"sentence-transformers {made.libraries['sentence-transformers']} in float32"
            reference = made.reference
            proof = prove(arguments.folder, manifest, reference=reference, texts=TEXTS, pairs=PAIRS, against=against)
    if arguments.json:
        _print_json({"name": manifest.name, "digest": manifest.digest, "proof": proof})
    else:
        lines = [f"{arguments.folder}: {manifest.name} is whole, digest {manifest.digest}, and loads"]
        _print("\n".join([*lines, *(describe_proof(proof) if proof else ())]) + "\n")
    return 0 if proof is None or proof.passed else 1


def run_encoder_inspect(arguments: Namespace) -> int:
    """Prints the facts as aligned lines, or with --json the manifest."""
    from ortserve.export.encoders.report import describe_encoder
    from ortserve.runtime.encoder_manifest import read_encoder_manifest

    manifest = read_encoder_manifest(arguments.folder)
    return _print_json(manifest) if arguments.json else _print(describe_encoder(manifest))


def _print(text: str) -> int:
    sys.stdout.write(text)
    return 0


def _print_json(value: object) -> int:
    return _print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def _failed(error: CheckFailedError) -> int:
    sys.stderr.write(f"ortserve: {error}\n")
    return 1
