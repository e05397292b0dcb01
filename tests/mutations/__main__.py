"""Does every rule of the checklist have a test that fails when the rule is broken? Plants breaks and runs those tests.

  python -m tests.mutations                     all of tests/mutations/breaks/
  python -m tests.mutations --only role-comes   those whose rule contains a word
  python -m tests.mutations --sample 10         so many, drawn by --seed
  python -m tests.mutations --jobs 4            so many at a time

A break names a rule of tests/gateway/checklist.toml, a file, a text that it has exactly once, and what to put there.
The tests that the map names for the rule run with that file broken in memory. `found`: one of them failed, as it must,
and its name and last words follow; `missed`: all passed; `stale`: the text is gone, or what the tests need could not be
made, which is no verdict of theirs. Exit status 0 if all were found.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.mutations.plant import plant

ROOT = Path(__file__).parents[2]
BREAKS = Path(__file__).parent / "breaks"  # one file per section of the checklist
CHECKLIST = ROOT / "tests" / "gateway" / "checklist.toml"
PASSED = 0  # pytest's word for it
LIMIT_S = 600.0
FORK = get_context("fork")
# What most tests import and nothing here breaks: imported once, before any child is made.
STRANGERS = (
    "anthropic", "httpx", "hypercorn.asyncio", "hypothesis", "jinja2.sandbox", "jsonschema", "onnx", "onnxruntime",
    "openai", "prometheus_client", "starlette.applications", "structlog", "tokenizers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Break:
    """One planted error, and the tests that must see it."""

    rule: str  # section.rule
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]


def read_breaks() -> list[Break]:
    """Raises `KeyError` for a rule that the checklist does not have."""
    rules = tomllib.loads(CHECKLIST.read_text(encoding="utf-8"))
    found = []
    for path in sorted(BREAKS.glob("*.toml")):
        for one in tomllib.loads(path.read_text(encoding="utf-8"))["break"]:
            section, _, rule = one["rule"].partition(".")
            found.append(Break(**one, tests=tuple(rules[section][rule])))
    return found


def verdict_of(one: Break) -> tuple[str, str]:
    """`found`, `missed` or `stale`, and what pytest said of it."""
    with tempfile.TemporaryFile("w+") as output:
        child = FORK.Process(target=_run_tests, args=(one, output.fileno()))
        child.start()
        child.join(LIMIT_S)
        if child.is_alive():
            child.kill()
            child.join()
            return "found", "no end within the limit"
        output.seek(0)
        lines = [line for line in output.read().splitlines() if line.strip()]
    failed = next((line for line in lines if line.startswith("FAILED ")), None)  # fixtures that fail are ERRORs
    if failed is not None:
        return "found", failed.removeprefix("FAILED tests/")
    errors = [line for line in lines if line.startswith("ERROR ")]
    said = (*lines[-1:], *errors)[-1] if lines else ""
    return "missed" if child.exitcode == PASSED else "stale", said


def _run_tests(one: Break, output: int) -> None:
    """In a child: what it breaks is broken in no other process."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(ROOT)
    os.environ["COLUMNS"] = "200"  # of the summary
    plant(ROOT / one.file, one.find, one.replace)
    are_strangers = "ignore::pytest.PytestAssertRewriteWarning"
    code = pytest.main(["-x", "-p", "no:cacheprovider", "-W", are_strangers, *(f"tests/{test}" for test in one.tests)])
    sys.stdout.flush()
    os._exit(code)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="WORD", default="", help="rules that contain it")
    parser.add_argument("--sample", type=int, metavar="N", help="so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default %(default)s)")
    parser.add_argument("--jobs", type=int, metavar="N", default=1, help="breaks at a time (default %(default)s)")
    arguments = parser.parse_args(words)
    breaks = [one for one in read_breaks() if arguments.only in one.rule]
    if arguments.sample is not None:
        breaks = random.Random(arguments.seed).sample(breaks, min(arguments.sample, len(breaks)))
    for name in STRANGERS:
        import_module(name)
    counts = dict.fromkeys(("found", "missed", "stale"), 0)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for one, (word, said) in zip(breaks, pool.map(verdict_of, breaks), strict=True):
            counts[word] += 1
            print(f"{word:7s} {one.rule}  {one.file}: {said}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return 0 if breaks and counts["found"] == len(breaks) else 1


if __name__ == "__main__":
    sys.exit(main())
