"""Options of the accounts of what has been used. Knows no ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ortserve.gateway.configuration.kinds import PATH
from ortserve.gateway.configuration.option import option


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
