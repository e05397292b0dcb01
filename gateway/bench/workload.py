"""What the load generator is asked to do, as frozen values. Knows no sockets, no time and no results."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from ortserve.runtime.errors import OrtserveError


class BenchError(OrtserveError):
    """The benchmark cannot run as asked: bad usage, or the server cannot be reached or measured."""


class Api(StrEnum):
    """Which endpoint carries the load."""

    COMPLETIONS = "completions"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is. `prefix` is the path in front of `/v1`, without a slash at its end."""

    host: str
    port: int
    tls: bool
    prefix: str = ""
    api_key: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The address without secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"


def parse_target(url: str, api_key: str | None) -> Target:
    """Read `http(s)://host[:port][/prefix][/v1]`.

    Raises `BenchError` for another scheme, a missing host, a bad port, or a user name or password in the address.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise BenchError(f"--url {url}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BenchError(f"--url {url}: give an address such as http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise BenchError("--url must not carry a user name or password: use --api-key or ORTSERVE_API_KEY")
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable()):
        raise BenchError("--api-key must be printable ASCII: it travels in a header")
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Target(parts.hostname, port or (443 if tls else 80), tls, prefix, api_key)


@dataclass(frozen=True, slots=True)
class Workload:
    """What every request looks like. Counts are tokens as the server counts them.

    `num_shared_tokens` of the prompt are the same in all requests of a run (a system prompt), the rest is unique to
    each, so that a server's prompt cache can reuse exactly the shared part.
    """

    model: str
    api: Api
    num_prompt_tokens: int
    num_output_tokens: int
    num_shared_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`concurrency` workers, each of which sends its next request when its last one is done."""

    concurrency: int
    num_warmup: int  # per worker
    num_requests: int | None  # in all, for all workers together
    duration_s: float | None  # instead of num_requests


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests arrive as a Poisson process of `rate` per second, whether or not earlier ones are done."""

    rate: float
    num_warmup: int  # arrivals before the window opens
    num_requests: int | None
    duration_s: float | None


Level = ClosedLoop | OpenLoop
