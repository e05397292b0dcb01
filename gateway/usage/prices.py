"""What a million tokens cost, by model. Knows no currency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ortserve.runtime.errors import OrtserveError

MILLION = 1_000_000
Amount = Annotated[float, Meta(ge=0)]


class PricesError(OrtserveError):
    """The table of prices cannot be used; names what is wrong."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Per million tokens; `cached` absent: as `prompt`."""

    prompt: Amount
    completion: Amount = 0.0
    cached: Amount | None = None

    def cost(self, *, num_prompt: int, num_cached: int, num_completion: int) -> float:
        """Of one request; `num_cached` are part of `num_prompt`."""
        cached = self.prompt if self.cached is None else self.cached
        parts = (num_prompt - num_cached) * self.prompt + num_cached * cached + num_completion * self.completion
        return parts / MILLION


def read_prices(path: Path) -> Mapping[str, Price]:
    """By served name, as {"model": {"prompt": 0.5, "cached": 0.1, "completion": 1.5}}. Raises `PricesError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Price])
    except OSError as error:
        raise PricesError(f"{path} cannot be read ({error.strerror}): check --prices") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PricesError(f"{path} is no table of prices: {error}") from None
