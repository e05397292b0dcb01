"""Defaults of command-line options from the environment: `--max-rows` is ORTSERVE_MAX_ROWS. Knows no option."""

from __future__ import annotations

import argparse
import os
import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def default_of(flag: str, fallback: str | None = None, *, plain: bool = False) -> str | None:
    """The environment's value of a flag. `plain` also reads the bare name, as HOST for --host."""
    name = flag.lstrip("-").replace("-", "_").upper()
    value = os.environ.get(f"ORTSERVE_{name}")
    if value is None and plain:
        value = os.environ.get(name)
    return value or fallback


def switch_of(flag: str) -> bool:
    """Whether the environment turns a flag without value on."""
    return (default_of(flag) or "").lower() in ("1", "true", "yes", "on")


def positive(text: str) -> int:
    """An argparse type: a whole number above zero."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def seconds(text: str) -> float:
    """An argparse type: a number of at least zero."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def port(text: str) -> int:
    """An argparse type: 0 (any free one) to 65535."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port between 0 and 65535")
    return value


def num_bytes(text: str) -> int:
    """An argparse type: 1500000, 512MB or 2GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?|)b?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 512MB or 2GiB")
    return int(float(match[1]) * UNITS[match[2]])
