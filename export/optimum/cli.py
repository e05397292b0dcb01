"""`ortserve export --via optimum`. Knows arguments and what is printed, not how it is done."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ortserve.export.bundled import resolve_source
from ortserve.export.printing import run_and_print

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
    from ortserve.export.optimum.decoders import export_decoder
    from ortserve.export.optimum.source import open_for_optimum

    def export() -> None:
        export_decoder(
            open_for_optimum(resolve_source(arguments.source)),
            arguments.destination,
            max_context=arguments.max_context,
            verify=not arguments.no_verify,
            force=arguments.force,
            allow_unproven=arguments.allow_unproven,
        )

    return run_and_print(export, arguments.destination, as_json=arguments.json)
