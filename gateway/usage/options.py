"""What the settings of usage mean: the ledger, and what it keeps account of. Knows no route."""

from __future__ import annotations

import time
from collections.abc import Collection

from ortserve.gateway.access.grant import Unit
from ortserve.gateway.options.usage import UsageSettings
from ortserve.gateway.usage.ledger import Ledger, read_since
from ortserve.gateway.usage.prices import read_prices
from ortserve.gateway.usage.spending import Spending, month_start
from ortserve.runtime.errors import ConfigurationError


def open_ledger(settings: UsageSettings) -> Ledger | None:
    """The ledger, if one is wanted. Raises `LedgerError`, `PricesError`, or `ConfigurationError` for prices alone."""
    if settings.usage_ledger is None:
        if settings.prices is not None:
            raise ConfigurationError("--prices are for --usage-ledger: give both, or leave it out")
        return None
    prices = {} if settings.prices is None else read_prices(settings.prices)
    return Ledger(settings.usage_ledger, prices, Spending(read_since(settings.usage_ledger, month_start(time.time()))))


def accounted_units(settings: UsageSettings) -> Collection[Unit]:
    """What budgets can be kept in: nothing without a ledger, and no cost without prices."""
    units: list[Unit] = [] if settings.usage_ledger is None else ["tokens"]
    if units and settings.prices is not None:
        units.append("cost")
    return units
