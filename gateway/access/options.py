"""Options of who may use the server, and of what they have used. Knows no route."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.grant import Unit
from ortserve.gateway.configuration.kinds import PATH, SWITCH, TEXT
from ortserve.gateway.configuration.option import option
from ortserve.gateway.usage.ledger import Ledger, read_since
from ortserve.gateway.usage.prices import read_prices
from ortserve.gateway.usage.spending import Spending, month_start
from ortserve.runtime.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Access."""

    SECTION: ClassVar[str] = "access"

    api_key: str | None = option(None, TEXT, "clients must send it (none: every key is accepted)", secret=True)
    api_keys: Path | None = option(
        None,
        PATH,
        "keys with tenants, scopes, models and limits, one a line (ortserve keys new); read again when it changes",
        metavar="FILE",
    )
    admin_key: str | None = option(
        None,
        TEXT,
        "opens /admin to those who send it (none: closed to everyone without a key of scope admin)",
        secret=True,
    )
    admin_metrics: bool = option(False, SWITCH, "only keys of scope admin read /metrics (every key)")


@dataclass(frozen=True, slots=True)
class UsageSettings:
    """Usage."""

    SECTION: ClassVar[str] = "usage"

    usage_ledger: Path | None = option(
        None,
        PATH,
        "append a JSON line for each request: key, model, tokens, seconds, cost (ortserve usage sums them up)",
        metavar="FILE",
    )
    prices: Path | None = option(
        None, PATH, "what a million tokens cost by model, as JSON (the ledger has no costs)", metavar="FILE"
    )


def open_ledger(settings: UsageSettings) -> Ledger | None:
    """The ledger, if one is wanted. Raises `LedgerError`, `PricesError`, or `ConfigurationError` for prices alone."""
    if settings.usage_ledger is None:
        if settings.prices is not None:
            raise ConfigurationError("--prices are for --usage-ledger: give both, or leave it out")
        return None
    prices = {} if settings.prices is None else read_prices(settings.prices)
    return Ledger(settings.usage_ledger, prices, Spending(read_since(settings.usage_ledger, month_start(time.time()))))


def open_access(settings: AccessSettings, usage: UsageSettings) -> Access:
    """The keys a server begins with. Raises `KeyFileError`."""
    accounted: list[Unit] = [] if usage.usage_ledger is None else ["tokens"]
    if accounted and usage.prices is not None:
        accounted.append("cost")
    return Access(api_key=settings.api_key, admin_key=settings.admin_key, file=settings.api_keys, accounted=accounted)
