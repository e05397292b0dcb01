"""`ortserve export --via optimum`. Knows arguments and what is printed, not how it is done."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ortserve.export.bundled import resolve_source
from ortserve.export.errors import CheckFailedError, ExportError, UnprovenError
from ortserve.export.printing import print_export, print_failure

OPTIMUM = "optimum"


def add_via_argument(parser: ArgumentParser) -> None:
    """The option of `ortserve export`."""
    parser.add_argument(
        "--via",
        choices=(OPTIMUM,),
        help="optimum: a decoder that has no builder here, in float32, through optimum in an environment of its own",
    )


def run_via_optimum(arguments: Namespace) -> int:
    """Prints the report, or with --json manifest and report; 1 when the proof fails."""
    _refuse_options(arguments)
    from ortserve.export.optimum.decoders import export_decoder
    from ortserve.export.optimum.source import open_for_optimum

    try:
        export_decoder(
            open_for_optimum(resolve_source(arguments.source)),
            arguments.destination,
            max_context=arguments.max_context,
            verify=not arguments.no_verify,
            force=arguments.force,
            allow_unproven=arguments.allow_unproven,
        )
    except UnprovenError as error:
        if error.folder is not None:
            print_export(error.folder, as_json=arguments.json)
        return print_failure(error)
    except CheckFailedError as error:
        return print_failure(error)
    return print_export(arguments.destination, as_json=arguments.json)


def _refuse_options(arguments: Namespace) -> None:
    """Raise `ExportError` for what shapes a graph of our own."""
    if arguments.precision not in (None, "fp32"):
        raise ExportError(f"--via optimum exports fp32, not {arguments.precision}: leave out --precision")
    if arguments.device != "cpu":
        raise ExportError("--via optimum exports for the CPU: leave out --device")
    if arguments.dry_run:
        raise ExportError("--dry-run plans graphs built here; optimum has no plan to show: leave it out")
    if arguments.reference == "numpy":
        raise ExportError("--via optimum is proved against transformers in its environment: leave out --reference")
    given = {
        "--adapter": arguments.adapter is not None,
        "--block-size": arguments.block_size is not None,
        "--calibration": arguments.calibration is not None,
        "--activations": arguments.activations != "calibrated",
        "--requantize": arguments.requantize,
    }
    for option, is_given in given.items():
        if is_given:
            raise ExportError(f"{option} is for graphs built here: leave it out, or leave out --via optimum")
