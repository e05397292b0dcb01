"""Endpoints of models that generate, on a server without one: says what its models are for. Knows no schema."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.directory import Directory
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.routes.bodies import parse_object


@dataclass(frozen=True, slots=True)
class WrongModelRoute:
    """Refuses every call."""

    directory: Directory

    async def post(self, request: Request) -> Response:
        """Raises `ApiError`: 404 for an unknown model, 403 for one that is not allowed, 400 for one of another kind."""
        exchange = exchange_of(request.scope)
        name = parse_object(exchange.body).required_string("model")
        exchange.check_model(name)
        self.directory.find(name, "generate")
        raise AssertionError("a model that generates has its own routes")
