"""`ortserve keys`: makes API keys and the lines that let a server know them. Writes no file and knows no server."""

from __future__ import annotations

import argparse
import secrets
import sys

import msgspec

from ortserve.gateway.access.grant import digest_of
from ortserve.gateway.access.key_file import HASH_PREFIX, KeyLine
from ortserve.gateway.configuration.kinds import POSITIVE
from ortserve.gateway.configuration.option import argument
from ortserve.runtime.errors import OrtserveError

EXAMPLE = """example:
  ortserve keys new --name alice >> keys.jsonl                the key is shown once, on standard error
  ortserve keys new --name ci --tenant acme --models smollm2 --requests-per-minute 60 >> keys.jsonl
  ortserve keys new --name ops --scopes admin >> keys.jsonl
  printf %s "$MY_KEY" | ortserve keys hash --name mine >> keys.jsonl
  ortserve serve --api-keys keys.jsonl
"""
PREFIX = "sk-ort-"
MIN_LENGTH = 24  # characters; a key that can be guessed is not protected by being hashed


class KeyWordError(OrtserveError):
    """What was asked makes no usable line."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Make API keys, and the lines of `ortserve serve --api-keys FILE` that admit them."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--name", required=True, help="of the key, for logs and reports; it is no secret")
    add("--tenant", help="keys of one tenant share cached prompts and kept responses (each its own)")
    add("--scopes", nargs="+", default=["inference"], choices=("inference", "admin"), help="(inference)")
    add("--models", nargs="+", metavar="MODEL", help="that may be used (all)")
    add("--requests-per-minute", type=argument(POSITIVE), metavar="N")
    add("--tokens-per-minute", type=argument(POSITIVE), metavar="N")
    add("--concurrency", type=argument(POSITIVE), metavar="N", help="requests at once")
    add("--priority", type=int, default=0, metavar="N", help="larger runs first (0)")
    add("--weight", type=argument(POSITIVE), default=1, metavar="N", help="of its tenant's share under load (1)")
    add("--tokens-per-day", type=argument(POSITIVE), metavar="N", help="budget, from midnight UTC; needs a ledger")
    add("--tokens-per-month", type=argument(POSITIVE), metavar="N")
    add("--cost-per-day", type=float, metavar="X", help="budget in the currency of --prices")
    add("--cost-per-month", type=float, metavar="X")
    actions = parser.add_subparsers(dest="action", required=True, metavar="new|hash")
    actions.add_parser(
        "new", parents=[common], help="make a key: its line on standard output, itself on standard error"
    )
    actions.add_parser("hash", parents=[common], help="the line of a key that is read from standard input")


def run(arguments: argparse.Namespace) -> int:
    """Print the line; 0. Raises `KeyWordError`."""
    is_new = arguments.action == "new"
    key = PREFIX + secrets.token_urlsafe(32) if is_new else sys.stdin.readline().strip()
    if len(key) < MIN_LENGTH:
        raise KeyWordError(f"the key has {len(key)} characters: use at least {MIN_LENGTH}, or `ortserve keys new`")
    line = KeyLine(
        name=arguments.name,
        hash=HASH_PREFIX + digest_of(key.encode()).hex(),
        tenant=arguments.tenant,
        scopes=tuple(dict.fromkeys(arguments.scopes)),
        models=None if arguments.models is None else tuple(arguments.models),
        requests_per_minute=arguments.requests_per_minute,
        tokens_per_minute=arguments.tokens_per_minute,
        concurrency=arguments.concurrency,
        priority=arguments.priority,
        weight=arguments.weight,
        tokens_per_day=arguments.tokens_per_day,
        tokens_per_month=arguments.tokens_per_month,
        cost_per_day=arguments.cost_per_day,
        cost_per_month=arguments.cost_per_month,
    )
    encoded = msgspec.json.encode(line)
    try:
        msgspec.json.decode(encoded, type=KeyLine)  # bounds are checked where lines are read
    except msgspec.ValidationError as error:
        raise KeyWordError(f"no server would take this key: {error}") from None
    sys.stdout.write(encoded.decode() + "\n")
    if is_new:
        sys.stderr.write(f"{key}\n")
    return 0
