"""Command-line options of who may use the server, and of what they have used. Knows no route."""

from __future__ import annotations

import argparse
from pathlib import Path

from ortserve.gateway.access.access import Access
from ortserve.gateway.environment import default_of
from ortserve.gateway.usage.ledger import Ledger
from ortserve.gateway.usage.prices import read_prices
from ortserve.runtime.errors import ConfigurationError


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
    add(
        "--usage-ledger",
        type=Path,
        default=default_of("--usage-ledger"),
        metavar="FILE",
        help="append a JSON line for each request: key, model, tokens, seconds, cost (ortserve usage sums them up)",
    )
    add(
        "--prices",
        type=Path,
        default=default_of("--prices"),
        metavar="FILE",
        help="what a million tokens cost by model, as JSON (the ledger has no costs)",
    )


def open_ledger(arguments: argparse.Namespace) -> Ledger | None:
    """The ledger, if one is wanted. Raises `LedgerError`, `PricesError`, or `ConfigurationError` for prices alone."""
    if arguments.usage_ledger is None:
        if arguments.prices is not None:
            raise ConfigurationError("--prices are for --usage-ledger: give both, or leave it out")
        return None
    return Ledger(arguments.usage_ledger, {} if arguments.prices is None else read_prices(arguments.prices))


def open_access(arguments: argparse.Namespace) -> Access:
    """The keys a server begins with. Raises `KeyFileError`."""
    return Access(api_key=arguments.api_key, admin_key=arguments.admin_key, file=arguments.api_keys)
