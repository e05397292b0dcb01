"""GET /openapi.json and /docs. Knows no endpoint but its own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ortserve.gateway.documentation.openapi import openapi_document
from ortserve.gateway.documentation.page import html_page


class DocumentationRoute:
    """Both forms of the description of `routes`, written when the application is built."""

    def __init__(self, routes: Sequence[Route], *, base_path: str = "") -> None:
        own = (("GET", "/openapi.json"), ("GET", "/docs"))
        document = openapi_document((*endpoints(routes), *own), version=version("ortserve"), base_path=base_path)
        self._json = msgspec.json.encode(document)
        self._page = html_page(document).encode()

    async def document(self, _: Request) -> Response:
        """For programs."""
        return Response(self._json, media_type="application/json")

    async def page(self, _: Request) -> Response:
        """For readers."""
        return Response(self._page, media_type="text/html")


def endpoints(routes: Sequence[Route]) -> list[tuple[str, str]]:
    """(method, path) of each; HEAD is GET's shadow."""
    return [(method, route.path) for route in routes for method in sorted((route.methods or set()) - {"HEAD"})]
