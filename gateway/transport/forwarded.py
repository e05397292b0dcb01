"""Who asked, and by which path and scheme, when a proxy has passed the request on. Knows no route and no body."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ortserve.gateway.configuration.kinds import Network

MAX_HOPS = 32
_PAIR = re.compile(r'\s*([A-Za-z]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^\s;,"]*))\s*(?:;|$)')


@dataclass(frozen=True, slots=True)
class Hop:
    """What one proxy says of who asked it; None: nothing."""

    client: str | None
    scheme: str | None


class Forwarded:
    """Takes a base path off, and believes headers of trusted proxies only: those of others are as good as absent.

    `X-Forwarded-For` and `-Proto` go before `Forwarded`: a proxy that writes only the former passes on the latter as
    its client has sent it. A peer on a Unix socket is a proxy of this host, and trusted if any is.
    """

    def __init__(self, app: ASGIApp, *, trusted: Sequence[Network] = (), base_path: str = "") -> None:
        self._app = app
        self._trusted = tuple(trusted)
        self._base_path = base_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Part of ASGI."""
        if scope["type"] == "http":
            self._take_off(scope)
            if self._trusted:
                self._believe(scope)
        await self._app(scope, receive, send)

    def _take_off(self, scope: Scope) -> None:
        """A proxy may have taken it off already: a path without it is served as well."""
        base, path = self._base_path, scope["path"]
        if base and (path == base or path.startswith(f"{base}/")):
            scope["path"] = path[len(base) :] or "/"

    def _believe(self, scope: Scope) -> None:
        peer = scope["client"]
        if peer is not None and not self._trusts(peer[0]):
            return
        hops = hops_of(Headers(scope=scope))
        # From the nearest proxy outwards: the first that is none of ours is who asked; beyond it all may be made up.
        for hop in reversed(hops[-MAX_HOPS:]):
            address = None if hop.client is None else address_of(hop.client)
            if hop.scheme in ("http", "https"):
                scope["scheme"] = hop.scheme
            if address is None:
                return
            scope["client"] = (address, 0)
            if not self._trusts(address):
                return

    def _trusts(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self._trusted)


def hops_of(headers: Headers) -> list[Hop]:
    """What the headers say, the outermost first."""
    names = [one.strip() for value in headers.getlist("x-forwarded-for") for one in value.split(",")]
    schemes = [one.strip().lower() for value in headers.getlist("x-forwarded-proto") for one in value.split(",")]
    if names or schemes:
        if len(schemes) == len(names):
            return [Hop(name, scheme) for name, scheme in zip(names, schemes, strict=True)]
        # A single scheme is that of the nearest proxy's client, as most proxies write it.
        last = schemes[-1] if schemes else None
        return [*(Hop(name, None) for name in names[:-1]), Hop(names[-1] if names else None, last)]
    return [_element(one) for value in headers.getlist("forwarded") for one in _split(value)]


def address_of(text: str) -> str | None:
    """The address of `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`; None for a name or `unknown`."""
    match = re.fullmatch(r"\[([^\]]*)\](?::\d+)?", text) or re.fullmatch(r"([^:]*):\d+", text)
    try:
        return str(ipaddress.ip_address(match[1] if match is not None else text))
    except ValueError:
        return None


def _split(value: str) -> list[str]:
    """Elements between commas that are in no quotes."""
    return re.findall(r'(?:"(?:\\.|[^"\\])*"|[^,"])+', value)


def _element(text: str) -> Hop:
    """One proxy's part of `Forwarded` (RFC 7239)."""
    pairs = {name.lower(): quoted or plain for name, quoted, plain in _PAIR.findall(text)}
    return Hop(pairs.get("for"), pairs["proto"].lower() if "proto" in pairs else None)
