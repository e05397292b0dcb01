"""`ortserve cache`: the prompt cache of a running server through /admin/cache, and its files. Knows no engine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from ortserve.gateway.commands.admin_client import admin_client, admin_parser, call, seconds_text, size_text, table_text
from ortserve.runtime.errors import OrtserveError

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
NUM_ROWS = 200


class CacheFilesError(OrtserveError):
    """Files cannot be read or moved."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Look at and change the prompt cache of a running server, which needs an --admin-key; move its files."
    )
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    common = admin_parser()
    common.add_argument("--model", metavar="NAME", help="whose cache (the first model's)")
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
    """Do what was asked; 0. Raises `AdminClientError` or `CacheFilesError`."""
    if arguments.action in ("export", "import"):
        return _move(arguments)
    with admin_client(arguments) as client:
        of = "" if arguments.model is None else f"&model={quote(arguments.model, safe='')}"
        match arguments.action:
            case "ls":
                reply = call(client, "GET", f"/admin/cache/entries?limit={arguments.limit}{of}")
                _print(arguments, reply, _entries_text)
            case "stats":
                _print(arguments, call(client, "GET", f"/admin/cache/stats?{of}"), _stats_text)
            case "warm":
                for line in _lines(arguments.file):
                    _print(arguments, call(client, "POST", f"/admin/cache/warm?{of}", line), _warmed_text)
            case _:
                wanted = {"api_key": arguments.of_key, "cache_salt": arguments.cache_salt}
                reply = call(client, "POST", f"/admin/cache/clear?{of}", msgspec.json.encode(wanted))
                _print(arguments, reply, lambda cleared: f"{cleared['num_blocks']} blocks forgotten\n")
    return 0


def _move(arguments: argparse.Namespace) -> int:
    from ortserve.plugins.prefix_cache.archive import export_blocks, import_blocks

    source, target = arguments.source, arguments.target
    if not source.exists():
        raise CacheFilesError(f"{source} does not exist: name a folder of --prompt-cache-path, or a file of export")
    try:
        moved = (export_blocks if arguments.action == "export" else import_blocks)(source, target)
    except (OSError, ValueError) as error:
        raise CacheFilesError(f"{source} cannot be moved to {target} ({error})") from None
    reply = {"num_blocks": moved.num_blocks, "num_ignored": moved.num_ignored}
    _print(
        arguments, reply, lambda one: f"{one['num_blocks']} blocks to {target}, {one['num_ignored']} files ignored\n"
    )
    return 0


def _lines(name: str) -> Iterator[bytes]:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CacheFilesError(f"{name} cannot be read ({error.strerror})") from None
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
    left = reply["num_entries"] - len(reply["data"])
    return table_text(rows) + (f"and {left} more: raise --limit\n" if left else "")


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
