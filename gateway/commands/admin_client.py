"""How verbs of the command line talk to /admin of a running server, and show what it says. Knows no endpoint."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ortserve.gateway.options.environment import default_of
from ortserve.runtime.errors import OrtserveError

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 600.0  # long prefixes are computed, and models loaded, while the client waits


class AdminClientError(OrtserveError):
    """The server could not be reached, or refused the request."""


def admin_parser() -> argparse.ArgumentParser:
    """The options of every verb that talks to a server's administration, for `parents`."""
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--url", default=default_of("--url", "http://127.0.0.1:8000"), help="the server (http://127.0.0.1:8000)")
    add("--admin-key", default=default_of("--admin-key"), help="the server's")
    add("--json", action="store_true", help="print the server's reply as it is")
    return common


@contextlib.contextmanager
def admin_client(arguments: argparse.Namespace) -> Iterator[httpx.Client]:
    """Raises `AdminClientError` without a key, and for a server that does not answer."""
    import httpx

    if not arguments.admin_key:
        raise AdminClientError("no admin key: give --admin-key, the one that `ortserve serve` was started with")
    url = arguments.url.rstrip("/").removesuffix("/v1")
    headers = [(b"authorization", f"Bearer {arguments.admin_key}".encode())]
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(TIMEOUT_S, connect=5.0)) as client:
            yield client
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise AdminClientError(f"{url} did not answer ({error}): check --url") from None


def call(client: httpx.Client, method: str, path: str, body: bytes = b"") -> Any:
    """The reply, decoded. Raises `AdminClientError` with the server's reason."""
    response = client.request(method, path, content=body)
    reason, code = f"the server answered {response.status_code}", None
    with contextlib.suppress(ValueError, LookupError, TypeError):
        reply = msgspec.json.decode(response.content)
        if response.status_code == 200:
            return reply
        reason, code = reply["error"]["message"], reply["error"]["code"]
    if response.status_code == 401:
        reason = "the server refused the admin key: give the one it was started with"
    if response.status_code == 404 and code is None:
        reason = f"the server has no {path.partition('?')[0]}: start it with --admin-key"
    raise AdminClientError(str(reason))


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """Columns below each other; the first row is their names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def size_text(num_bytes: float) -> str:
    """As 1.5 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def seconds_text(seconds: float) -> str:
    """As 90 s, 12 min, 3.5 h or 10 days."""
    for limit, divisor, unit in ((100.0, 1.0, "s"), (6000.0, 60.0, "min"), (172_800.0, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86_400:.0f} days"
