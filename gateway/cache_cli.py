"""`ortserve cache`: the prompt cache of a running server through /admin/cache, and its files. Knows no engine."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ortserve.gateway.environment import default_of
from ortserve.runtime.errors import OrtserveError

if TYPE_CHECKING:
    import httpx

EXAMPLE = """example:
  ortserve serve --admin-key SECRET &
  ortserve cache stats --admin-key SECRET          how much is reused, and what that takes
  ortserve cache ls --admin-key SECRET             block by block
  ortserve cache warm prompts.jsonl --admin-key SECRET
  ortserve cache clear --admin-key SECRET
  ortserve cache export DIR prefixes.tar           the blocks of a --prompt-cache-path; needs no server
  ortserve cache import prefixes.tar DIR           on another host
The key may also be set as ORTSERVE_ADMIN_KEY, the address as ORTSERVE_URL.
"""
WARM_HELP = 'JSON lines such as {"messages": [{"role": "system", "content": "..."}]} or {"prompt": "..."}; - is stdin'
TIMEOUT_S = 600.0  # a long prefix is computed while the client waits
NUM_ROWS = 200


class CacheClientError(OrtserveError):
    """The server could not be reached, or refused the request."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Look at and change the prompt cache of a running server, which needs an --admin-key; move its files."
    )
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--url", default=default_of("--url", "http://127.0.0.1:8000"), help="the server (http://127.0.0.1:8000)")
    add("--admin-key", default=default_of("--admin-key"), help="the server's")
    add("--json", action="store_true", help="print the server's reply as it is")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls|stats|warm|clear|export|import")
    listing = actions.add_parser("ls", parents=[common], help="what is kept, block by block")
    listing.add_argument("--limit", type=int, default=NUM_ROWS, metavar="N", help=f"rows at most ({NUM_ROWS})")
    actions.add_parser("stats", parents=[common], help="hits, sizes and what was saved")
    warming = actions.add_parser("warm", parents=[common], help="compute prefixes and keep them")
    warming.add_argument("file", metavar="FILE", help=WARM_HELP)
    clearing = actions.add_parser("clear", parents=[common], help="forget everything, or one tenant's prefixes")
    clearing.add_argument("--of-key", metavar="KEY", help="only what was cached for this API key")
    exporting = actions.add_parser("export", help="pack the blocks of a folder into one file")
    exporting.add_argument("source", type=Path, metavar="DIR", help="the folder of --prompt-cache-path")
    exporting.add_argument("target", type=Path, metavar="FILE", help="tar file to write")
    importing = actions.add_parser("import", help="add the blocks of a file to a folder")
    importing.add_argument("source", type=Path, metavar="FILE", help="written by export")
    importing.add_argument("target", type=Path, metavar="DIR", help="the folder of --prompt-cache-path")
    for moving in (exporting, importing):
        moving.add_argument("--json", action="store_true", help="print JSON instead of text")
    clearing.add_argument("--cache-salt", metavar="SALT", help="only what was cached with this cache_salt")


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; 0. Raises `CacheClientError`."""
    if arguments.action in ("export", "import"):
        return _move(arguments)
    with _client(arguments) as client:
        match arguments.action:
            case "ls":
                reply = _call(client, "GET", f"/admin/cache/entries?limit={arguments.limit}")
                _print(arguments, reply, _entries_text)
            case "stats":
                _print(arguments, _call(client, "GET", "/admin/cache/stats"), _stats_text)
            case "warm":
                for line in _lines(arguments.file):
                    _print(arguments, _call(client, "POST", "/admin/cache/warm", line), _warmed_text)
            case _:
                wanted = {"api_key": arguments.of_key, "cache_salt": arguments.cache_salt}
                reply = _call(client, "POST", "/admin/cache/clear", msgspec.json.encode(wanted))
                _print(arguments, reply, lambda cleared: f"{cleared['num_blocks']} blocks forgotten\n")
    return 0


def _move(arguments: argparse.Namespace) -> int:
    from ortserve.plugins.prefix_cache.archive import export_blocks, import_blocks

    source, target = arguments.source, arguments.target
    if not source.exists():
        raise CacheClientError(f"{source} does not exist: name a folder of --prompt-cache-path, or a file of export")
    try:
        moved = (export_blocks if arguments.action == "export" else import_blocks)(source, target)
    except (OSError, ValueError) as error:
        raise CacheClientError(f"{source} cannot be moved to {target} ({error})") from None
    reply = {"num_blocks": moved.num_blocks, "num_ignored": moved.num_ignored}
    _print(
        arguments, reply, lambda one: f"{one['num_blocks']} blocks to {target}, {one['num_ignored']} files ignored\n"
    )
    return 0


@contextlib.contextmanager
def _client(arguments: argparse.Namespace) -> Iterator[httpx.Client]:
    import httpx

    if not arguments.admin_key:
        raise CacheClientError("no admin key: give --admin-key, the one that `ortserve serve` was started with")
    url = arguments.url.rstrip("/").removesuffix("/v1")
    headers = [(b"authorization", f"Bearer {arguments.admin_key}".encode())]
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(TIMEOUT_S, connect=5.0)) as client:
            yield client
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CacheClientError(f"{url} did not answer ({error}): check --url") from None


def _call(client: httpx.Client, method: str, path: str, body: bytes = b"") -> Any:
    response = client.request(method, path, content=body)
    try:
        reply = msgspec.json.decode(response.content)
        if response.status_code == 200:
            return reply
        reason = reply["error"]["message"]
    except (ValueError, LookupError, TypeError):
        reason = f"the server answered {response.status_code}"
    if response.status_code == 401:
        reason = "the server refused the admin key: give the one it was started with"
    if response.status_code == 404:
        reason = "the server has no /admin/cache: start it with --admin-key"
    raise CacheClientError(str(reason))


def _lines(name: str) -> Iterator[bytes]:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CacheClientError(f"{name} cannot be read ({error.strerror})") from None
    yield from (line for line in data.splitlines() if line.strip())


def _print(arguments: argparse.Namespace, reply: Any, text_of: Any) -> None:
    sys.stdout.write(msgspec.json.encode(reply).decode() + "\n" if arguments.json else text_of(reply))


def _warmed_text(warmed: Any) -> str:
    return (
        f"{warmed['num_tokens']} tokens, {warmed['num_cached_tokens']} of them cached before,"
        f" {warmed['num_pinned_tokens']} kept\n"
    )


def _entries_text(reply: Any) -> str:
    rows = [("block", "tokens before", "tokens", "tier", "size", "hits", "idle", "kept for")]
    rows += [
        (
            entry["key"][:12],
            str(entry["depth"]),
            str(entry["num_tokens"]),
            entry["tier"],
            size_text(entry["num_bytes"]),
            str(entry["num_hits"]),
            seconds_text(entry["idle_s"]),
            "" if entry["pinned_s"] is None else seconds_text(entry["pinned_s"]),
        )
        for entry in reply["data"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    left = reply["num_entries"] - len(reply["data"])
    if left:
        lines.append(f"and {left} more: raise --limit")
    return "\n".join(lines) + "\n"


def _stats_text(reply: Any) -> str:
    stats = reply["stats"]
    query, hit = stats["num_query_tokens"], stats["num_hit_tokens"]
    share = f"{100 * hit / query:.1f} %" if query else "-"
    lines = [
        f"lookups        {stats['num_lookups']}",
        f"reused tokens  {hit} of {query} ({share})",
        f"time saved     about {seconds_text(stats['seconds_saved'])}",
        f"memory         {stats['num_blocks']} blocks, {size_text(stats['num_bytes'])},"
        f" {stats['num_evicted_blocks']} evicted",
    ]
    for name, tier in stats["tiers"].items():
        lines.append(
            f"{name:<15}{tier['num_blocks']} blocks, {size_text(tier['num_bytes'])}, {tier['num_reads']} read,"
            f" {tier['num_writes']} written, {tier['num_skipped_writes']} not written for want of time,"
            f" {tier['num_evicted_blocks']} evicted,"
            f" {tier['num_ignored_files']} files ignored, {tier['num_failures']} failures"
        )
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
