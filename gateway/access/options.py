"""Command-line options of who may use the server. Knows no route."""

from __future__ import annotations

import argparse
from pathlib import Path

from ortserve.gateway.access.access import Access
from ortserve.gateway.environment import default_of


def add_access_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the environment supplies their defaults."""
    add = parser.add_argument_group("access").add_argument
    add("--api-key", default=default_of("--api-key"), help="clients must send it (none: every key is accepted)")
    add(
        "--api-keys",
        type=Path,
        default=default_of("--api-keys"),
        metavar="FILE",
        help="keys with tenants, scopes, models and limits, one a line (ortserve keys new); read again when it changes",
    )
    add(
        "--admin-key",
        default=default_of("--admin-key"),
        help="opens /admin to those who send it (none: closed to everyone without a key of scope admin)",
    )


def open_access(arguments: argparse.Namespace) -> Access:
    """The keys a server begins with. Raises `KeyFileError`."""
    return Access(api_key=arguments.api_key, admin_key=arguments.admin_key, file=arguments.api_keys)
