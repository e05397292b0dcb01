"""`make e2e`: strangers' clients against a real server, and a table of what ran and what could not.

  python -m tests.e2e [--only WORD] [--environments DIR]

Exit status 0: everything ran and passed; 1: something failed, or could not be run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.e2e.environments import Environment, EnvironmentFailedError, environment
from tests.e2e.server import ServerFailedError, serving
from tests.e2e.suites import SUITES, Suite

SUITE_S = 600
VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE")  # nothing else of ours reaches a stranger's code


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one suite."""

    suite: Suite
    versions: str
    num_passed: int
    num_failed: int
    num_skipped: int
    seconds: float
    note: str = ""

    @property
    def is_good(self) -> bool:
        """Whether it ran, all of it passed, and there was something to pass."""
        return self.num_failed == 0 and self.num_passed > 0 and not self.note


def main() -> int:
    parser = argparse.ArgumentParser(description="Drive strangers' clients against a real server.")
    parser.add_argument("--only", default="", metavar="WORD", help="suites whose name contains it")
    parser.add_argument("--environments", type=Path, default=Path(".venvs"), metavar="DIR")
    arguments = parser.parse_args()
    suites = [suite for suite in SUITES if arguments.only in suite.name]
    if not suites:
        print(
            f"no suite has {arguments.only} in its name: {', '.join(suite.name for suite in SUITES)}", file=sys.stderr
        )
        return 2
    try:
        with serving() as url:
            outcomes = [run(suite, arguments.environments.resolve(), url) for suite in suites]
    except ServerFailedError as error:
        print(f"the server does not start: {error}", file=sys.stderr)
        return 1
    print(table(outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def run(suite: Suite, environments: Path, url: str) -> Outcome:
    """Install and run one suite, whatever happens to it."""
    start = time.monotonic()
    print(f"== {suite.name}", flush=True)
    try:
        place = environment(suite, environments)
    except EnvironmentFailedError as error:
        return Outcome(suite, "", 0, 0, 0, time.monotonic() - start, f"not installed: {error}")
    return run_in(place, suite, url, start)


def run_in(place: Environment, suite: Suite, url: str, start: float) -> Outcome:
    """Run one suite that is installed."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        variables |= {
            "ORTSERVE_URL": url,
            "ORTSERVE_MODEL": "pocket",
            "NO_PROXY": "127.0.0.1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        versions = place.versions(suite)
        try:
            done = subprocess.run(
                place.command(suite, report), env=variables, cwd=scratch, timeout=SUITE_S, check=False
            )
        except subprocess.TimeoutExpired:
            note = f"not finished within {SUITE_S} s"
            return Outcome(suite, versions, 0, 0, 0, time.monotonic() - start, note)
        counts = read_report(report)
    note = "" if done.returncode == 0 or counts[1] else f"exit status {done.returncode}"
    return Outcome(suite, versions, *counts, time.monotonic() - start, note)


def read_report(report: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests of a JUnit file; a file that is missing has none."""
    if not report.exists():
        return 0, 0, 0
    cases = list(ElementTree.parse(report).iter("testcase"))
    num_failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    num_skipped = sum(case.find("skipped") is not None for case in cases)
    return len(cases) - num_failed - num_skipped, num_failed, num_skipped


def table(outcomes: list[Outcome]) -> str:
    """One line per suite."""
    rows = [("suite", "versions", "passed", "failed", "skipped", "seconds", "")]
    for one in outcomes:
        counts = (str(one.num_passed), str(one.num_failed), str(one.num_skipped))
        rows.append((one.suite.name, one.versions, *counts, f"{one.seconds:.0f}", one.note))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
