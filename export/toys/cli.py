"""The verbs toy and widen. Knows arguments and what is printed; the work is done elsewhere."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ortserve.export.arguments import add_force, describe
from ortserve.export.bundled import resolve_source
from ortserve.export.printing import print_text
from ortserve.export.toys.shapes import SHAPES, find_shape


def configure_toy(parser: ArgumentParser) -> None:
    """`ortserve toy SHAPE DST`."""
    describe(
        parser,
        "Write a checkpoint of random weights in a well-known shape, to measure speed; its text means nothing.",
        "ortserve toy qwen2.5-0.5b toy-0.5b && ortserve export toy-0.5b toy-0.5b-int8",
    )
    parser.add_argument("shape", metavar="SHAPE", choices=tuple(SHAPES), help=", ".join(SHAPES))
    parser.add_argument("destination", metavar="DST", type=Path, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same bytes (default: 0)")
    add_force(parser)


def run_toy(arguments: Namespace) -> int:
    """Prints where the checkpoint is."""
    from ortserve.export.toys.toy import write_toy_checkpoint

    shape = find_shape(arguments.shape)
    write_toy_checkpoint(shape, arguments.destination, seed=arguments.seed, force=arguments.force, progress=True)
    return print_text(f"{arguments.destination}: {shape.num_parameters:,} random parameters, {arguments.shape}\n")


def configure_widen(parser: ArgumentParser) -> None:
    """`ortserve widen SRC DST --like SHAPE`."""
    describe(
        parser,
        "Widen a small trained checkpoint to the cost of a larger shape: same answers, real speed figures.",
        "ortserve widen pocket pocket-at-size --like qwen2.5-0.5b",
    )
    parser.add_argument("source", metavar="SRC", help="checkpoint folder, hub id, or pocket for the bundled model")
    parser.add_argument("destination", metavar="DST", type=Path, help="folder to make")
    parser.add_argument("--like", choices=tuple(SHAPES), required=True, help="shape whose cost it takes on")
    parser.add_argument("--max-context", type=int, metavar="N", help="tokens, beyond the trained ones too")
    add_force(parser)


def run_widen(arguments: Namespace) -> int:
    """Prints where the checkpoint is."""
    from ortserve.export.toys.widen import widen_checkpoint

    widen_checkpoint(
        resolve_source(arguments.source),
        arguments.destination,
        find_shape(arguments.like),
        max_context=arguments.max_context,
        force=arguments.force,
        progress=True,
    )
    return print_text(f"{arguments.destination}: {arguments.source} at the cost of {arguments.like}\n")
