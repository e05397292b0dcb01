"""Refuses what a full queue would refuse, before more of its body is read than the model's name. Knows no other field.

Under a flood most requests end here: what one of them costs, the flood takes from those that are served.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ortserve.gateway.errors import ApiError
from ortserve.gateway.served.service import ModelService

if TYPE_CHECKING:
    from ortserve.gateway.exchange import Exchange
    from ortserve.gateway.fleet.fleet import Fleet

GENERATING_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"))
MAX_BYTES = 256 * 1024  # of a body that is looked through here: half a millisecond


class _Named(msgspec.Struct):
    """Checked as JSON to its last byte; values of other names are passed over."""

    model: str | None = None


_DECODER = msgspec.json.Decoder(_Named)


class Room:
    """In the queues of all models that generate."""

    def __init__(self, fleet: Fleet, refused: Callable[[], None] | None = None) -> None:
        """`refused` is told of each that a full queue refuses."""
        self._fleet = fleet
        self._refused = refused

    def check(self, exchange: Exchange) -> None:
        """Raise `ApiError` for a full queue: 429, or 403 to whoever may not use the model.

        Whatever else may be wrong with a request is its route's to say: one that cannot be read passes, and one whose
        model is unknown or not there yet.
        """
        if exchange.path not in GENERATING_PATHS or len(exchange.body) > MAX_BYTES:
            return
        try:
            name = _DECODER.decode(exchange.body).model
        except (ValueError, RecursionError):
            return
        if name is None:
            name = exchange.directory.default("generate")
        service = None if name is None else self._fleet.ready(name)
        if name is None or not isinstance(service, ModelService):
            return
        try:
            service.check_room("prompt")
        except ApiError:
            if self._refused is not None:
                self._refused()
            exchange.check_model(name)
            raise
