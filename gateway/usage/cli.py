"""`ortserve usage`: sums of a ledger by key, tenant, model or day. Knows no server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ortserve.gateway.usage.ledger import read_ledger
from ortserve.gateway.usage.line import UsageLine

EXAMPLE = """example:
  ortserve serve --api-keys keys.jsonl --usage-ledger usage.jsonl --prices prices.json
  ortserve usage usage.jsonl                     by key and model
  ortserve usage usage.jsonl --by tenant day     other sums
  ortserve usage usage.jsonl --json
"""
ASPECTS: Mapping[str, Callable[[UsageLine], str]] = {
    "key": lambda line: line.key,
    "tenant": lambda line: line.tenant,
    "model": lambda line: line.model,
    "day": lambda line: datetime.fromtimestamp(line.time, UTC).date().isoformat(),
}


class Sum(msgspec.Struct):
    """Of some lines. `unpriced`: requests whose model had no price, not in `cost`."""

    names: list[str]
    requests: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    accepted: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    unpriced: int = 0

    def add(self, line: UsageLine) -> None:
        """Count one request."""
        self.requests += 1
        self.prompt += line.prompt
        self.cached += line.cached
        self.completion += line.completion
        self.accepted += line.accepted
        self.seconds += line.seconds
        self.cost += line.cost or 0.0
        self.unpriced += line.cost is None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "What a server's --usage-ledger says, summed up."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ledger", type=Path, metavar="FILE", help="of --usage-ledger")
    parser.add_argument("--by", nargs="+", choices=tuple(ASPECTS), default=["key", "model"], help="(key model)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the sums; 0. Raises `LedgerError`."""
    lines, num_broken = read_ledger(arguments.ledger)
    sums = summed(lines, arguments.by)
    if arguments.json:
        sys.stdout.buffer.write(msgspec.json.encode({"data": sums, "num_broken": num_broken}) + b"\n")
        return 0
    rows = [[*arguments.by, *Sum.__struct_fields__[1:]]]
    rows += [
        [*one.names, *map(str, (one.requests, one.prompt, one.cached, one.completion, one.accepted)),
         f"{one.seconds:.1f}", f"{one.cost:.6g}", str(one.unpriced)]
        for one in sums
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        sys.stdout.write("  ".join(map(str.ljust, row, widths)).rstrip() + "\n")
    if num_broken:
        sys.stderr.write(f"{num_broken} lines of {arguments.ledger} are no usage and were left out\n")
    return 0


def summed(lines: Iterable[UsageLine], aspects: Iterable[str]) -> list[Sum]:
    """One sum for each combination of the aspects' values, in their order."""
    chosen = [ASPECTS[aspect] for aspect in aspects]
    sums: dict[tuple[str, ...], Sum] = {}
    for line in lines:
        names = tuple(aspect(line) for aspect in chosen)
        sums.setdefault(names, Sum(list(names))).add(line)
    return [sums[names] for names in sorted(sums)]
