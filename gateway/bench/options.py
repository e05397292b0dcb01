"""What the verbs of the load generator have in common: types of their options, and the name of the model. No load."""

from __future__ import annotations

import argparse
import sys

from ortserve.gateway.bench.calibrate import list_models
from ortserve.gateway.bench.client import Client
from ortserve.gateway.bench.workload import BenchError, Target

DEFAULT_URL = "http://127.0.0.1:8000"


async def served_model(client: Client, target: Target, wanted: str | None) -> str:
    """The name to ask for. `wanted` may also be the path or hub id from which the server's only model came."""
    names = [str(entry["id"]) for entry in await list_models(client, target) if "id" in entry]
    if wanted is None:
        if not names:
            raise BenchError(f"{target.url} lists no models: name one with --model")
        return names[0]
    if wanted not in names and len(names) == 1 and "/" in wanted:
        sys.stderr.write(f"the server calls its model {names[0]}\n")
        return names[0]
    return wanted


def counts(text: str) -> list[int]:
    """An argparse type: whole numbers from 1, separated by commas."""
    return [count(word) for word in text.split(",")]


def rates(text: str) -> list[float]:
    """An argparse type: numbers above 0, separated by commas."""
    return [positive(word) for word in text.split(",")]


def count(text: str) -> int:
    """An argparse type: a whole number from 1."""
    return _at_least(whole(text), 1)


def whole(text: str) -> int:
    """An argparse type: a whole number from 0."""
    try:
        return _at_least(int(text), 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _at_least(value: int, least: int) -> int:
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is below {least}")
    return value


def positive(text: str) -> float:
    """An argparse type: a number above 0."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def temperatures(text: str) -> list[float]:
    """An argparse type: numbers from 0 to 2, separated by commas."""
    return [temperature(word) for word in text.split(",")]


def temperature(text: str) -> float:
    """An argparse type: a number from 0 to 2."""
    value = _number(text)
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
