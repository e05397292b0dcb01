"""Command-line options of what the server keeps between requests. Knows no store."""

from __future__ import annotations

import argparse
from pathlib import Path

from ortserve.gateway.environment import default_of, num_bytes, seconds
from ortserve.gateway.store.files import FileBounds
from ortserve.gateway.store.state import TTL_S, StateOptions


def add_state_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the environment supplies their defaults."""
    add = parser.add_argument_group("responses, conversations and files").add_argument
    add(
        "--state-dir",
        type=Path,
        default=default_of("--state-dir"),
        metavar="DIR",
        help="keep them there, across restarts (in memory, gone with the process)",
    )
    add(
        "--state-size",
        type=num_bytes,
        default=default_of("--state-size"),
        metavar="SIZE",
        help="most bytes of them, the oldest give way (64MiB in memory, 1GiB in DIR)",
    )
    add(
        "--state-ttl",
        type=seconds,
        default=default_of("--state-ttl", f"{TTL_S:.0f}"),
        metavar="S",
        help=f"seconds since their last use ({TTL_S:.0f}: 30 days)",
    )
    add(
        "--files-size",
        type=num_bytes,
        default=default_of("--files-size", "2GiB"),
        metavar="SIZE",
        help="most bytes of uploaded files and batch results; more are refused (2GiB)",
    )


def state_options(arguments: argparse.Namespace) -> StateOptions:
    """What the stores are opened with."""
    return StateOptions(
        arguments.state_dir,
        arguments.state_size,
        arguments.state_ttl,
        FileBounds(min(FileBounds().max_file_bytes, arguments.files_size), arguments.files_size),
    )
