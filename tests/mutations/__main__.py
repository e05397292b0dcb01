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
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BREAKS = Path(__file__).parent / "breaks"  # one file per section of the checklist
CHECKLIST = ROOT / "tests" / "gateway" / "checklist.toml"
PASSED = 0  # pytest's word for it
LIMIT_S = 600.0


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
    environment = {
        **os.environ,
        "BREAK_FILE": str(ROOT / one.file),
        "BREAK_FIND": one.find,
        "BREAK_REPLACE": one.replace,
        "COLUMNS": "200",  # of the summary
    }
    command = [sys.executable, "-m", "pytest", "-x", "-p", "tests.mutations.plant", "-p", "no:cacheprovider"]
    tests = [f"tests/{test}" for test in one.tests]
    try:
        done = subprocess.run(
            [*command, *tests], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "found", "no end within the limit"
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    failed = next((line for line in lines if line.startswith("FAILED ")), None)  # fixtures that fail are ERRORs
    if failed is not None:
        return "found", failed.removeprefix("FAILED tests/")
    errors = [line for line in lines if line.startswith("ERROR ")]
    said = (*lines[-1:], *errors)[-1] if lines else ""
    return "missed" if done.returncode == PASSED else "stale", said


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
    counts = dict.fromkeys(("found", "missed", "stale"), 0)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for one, (word, said) in zip(breaks, pool.map(verdict_of, breaks), strict=True):
            counts[word] += 1
            print(f"{word:7s} {one.rule}  {one.file}: {said}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return 0 if breaks and counts["found"] == len(breaks) else 1


if __name__ == "__main__":
    sys.exit(main())
