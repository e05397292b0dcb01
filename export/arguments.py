"""Arguments that several verbs of the exporter share. Knows no verb."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from ortserve.export.options import DEFAULTS
from ortserve.export.recipes.precisions import REFERENCES


def describe(parser: ArgumentParser, description: str, example: str) -> None:
    """What the verb is for, and one line that shows it."""
    parser.description = description
    parser.epilog = f"example:\n  {example}"
    parser.formatter_class = RawDescriptionHelpFormatter


def add_force(parser: ArgumentParser) -> None:
    """`--force`, of verbs that make a folder."""
    parser.add_argument("--force", action="store_true", help="replace an existing model folder")


def add_reference(parser: ArgumentParser) -> None:
    """`--reference`, of verbs that prove."""
    parser.add_argument(
        "--reference",
        choices=REFERENCES,
        default=DEFAULTS["reference"],
        help="what is computed beside: transformers with torch, NumPy, or (auto) the first where it is installed",
    )


def add_json(parser: ArgumentParser) -> None:
    """`--json`, of verbs that print."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
