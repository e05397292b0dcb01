"""Options of the edge: where the server listens, by which path, for which proxies and web pages. Knows no socket."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ortserve.gateway.configuration.kinds import NETWORKS, PATH, SECONDS, SIZE, WORDS, Kind, Network
from ortserve.gateway.configuration.option import option
from ortserve.runtime.errors import ConfigurationError

ANY_ORIGIN = "*"
NO_ORIGIN = "none"
MAX_BODY_BYTES = 32 * 1024 * 1024


def _mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError
    return int(text, 8)


def _base_path(text: str) -> str:
    """With a slash before each word and none at the end; the root is empty."""
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", text) or "/." in text:
        raise ValueError
    return text.rstrip("/")


MODE = Kind("permissions in octal, such as 660", _mode, written=lambda mode: f"{mode:o}")
BASE_PATH = Kind("a path such as /llm", _base_path)


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Edge."""

    SECTION: ClassVar[str] = "edge"

    unix: Path | None = option(None, PATH, "listen on this Unix socket instead of --host and --port", metavar="PATH")
    unix_mode: int = option(0o660, MODE, "permissions of that socket, in octal (660)", metavar="MODE")
    base_path: str = option("", BASE_PATH, "also serve below this path, whether or not a proxy takes it off (/)")
    trusted_proxies: tuple[Network, ...] = option(
        (),
        NETWORKS,
        "whose X-Forwarded-For, X-Forwarded-Proto and Forwarded are believed: addresses or networks (nobody's)",
        metavar="CIDR,...",
    )
    cors_origins: tuple[str, ...] = option(
        (ANY_ORIGIN,),
        WORDS,
        "web pages of which origins may call: https://a.example,..., * or none (*)",
        metavar="ORIGIN,...",
    )


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS."""

    SECTION: ClassVar[str] = "tls"

    tls_cert: Path | None = option(
        None, PATH, "serve HTTPS with this chain in PEM; read again when it changes, and on SIGHUP", metavar="FILE"
    )
    tls_key: Path | None = option(None, PATH, "the key of its first certificate, in PEM", metavar="FILE")
    tls_client_ca: Path | None = option(
        None, PATH, "clients must have a certificate that one of these has signed", metavar="FILE"
    )


@dataclass(frozen=True, slots=True)
class InputSettings:
    """Limits of what is sent to the server."""

    SECTION: ClassVar[str] = "limits"

    header_timeout: float = option(20.0, SECONDS, "seconds for the head of a request (20)", metavar="S")
    body_timeout: float = option(
        30.0, SECONDS, "seconds for its body, and one more for each 500 bytes (30)", metavar="S"
    )
    max_body: int = option(MAX_BODY_BYTES, SIZE, "most bytes of a body that is no upload (32MiB)", metavar="SIZE")


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """What the application's outermost layers are made with."""

    base_path: str = ""
    trusted_proxies: tuple[Network, ...] = ()
    cors_origins: tuple[str, ...] = (ANY_ORIGIN,)
    body_s: float = 30.0
    max_body_bytes: int = MAX_BODY_BYTES


def edge_options(edge: EdgeSettings, limits: InputSettings) -> EdgeOptions:
    """Raises `ConfigurationError` for what is no origin."""
    origins = edge.cors_origins
    if origins == (NO_ORIGIN,):
        origins = ()
    for origin in origins:
        if origin != ANY_ORIGIN and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
            raise ConfigurationError(
                f"--cors-origins: {origin!r} is not an origin such as https://chat.example:8443, without a path;"
                f" {ANY_ORIGIN} allows all, {NO_ORIGIN} alone allows nobody"
            )
    return EdgeOptions(edge.base_path, edge.trusted_proxies, origins, limits.body_timeout, limits.max_body)
