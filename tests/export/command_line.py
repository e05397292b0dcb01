"""Runs a verb of the exporter as the console script does, in this process."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ortserve.export import cli


def verb_parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"ortserve {verb}")
    configure: Callable[[argparse.ArgumentParser], None] = getattr(cli, f"configure_{verb}")
    configure(parser)
    return parser


def run_verb(verb: str, *words: str | Path) -> int:
    """The exit status."""
    run: Callable[[argparse.Namespace], int] = getattr(cli, f"run_{verb}")
    return run(verb_parser(verb).parse_args([str(word) for word in words]))
