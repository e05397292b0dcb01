"""One environment per lock, made once and kept until the lock changes. Knows no tests and no server."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.suites import Suite

HERE = Path(__file__).parent
LOCKS = HERE / "locks"
CLIENTS = HERE / "clients"
INSTALL_S = 900
_STAMP = ".lock-digest"


class EnvironmentFailedError(Exception):
    """An environment cannot be made; the message is what its installer said last."""


@dataclass(frozen=True, slots=True)
class Environment:
    """An installed lock."""

    folder: Path
    program: Path  # its interpreter

    def command(self, suite: Suite, report: Path) -> list[str]:
        """Runs the suite's tests and writes a JUnit file."""
        if suite.runtime == "python":
            tests = [str(CLIENTS / name) for name in suite.tests]
            options = ["-c", str(CLIENTS / "pytest.ini"), "--rootdir", str(CLIENTS), f"--junit-xml={report}"]
            return [str(self.program), "-m", "pytest", *options, *suite.options, *tests]
        # Modules are looked up beside the file that imports them, so the tests run in the environment's folder.
        tests = [str(shutil.copy(CLIENTS / name, self.folder)) for name in suite.tests]
        reporters = ["--test-reporter=spec", "--test-reporter-destination=stdout"]
        reporters += ["--test-reporter=junit", f"--test-reporter-destination={report}"]
        return [str(self.program), "--test", *reporters, *tests]

    def versions(self, suite: Suite) -> str:
        """The packages a suite is about, with their installed versions."""
        if suite.runtime == "python":
            code = (
                "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
            )
            done = subprocess.run([self.program, "-c", code, *suite.shows], capture_output=True, text=True, check=True)
            return done.stdout.strip()
        manifests = [
            json.loads((self.folder / "node_modules" / name / "package.json").read_text()) for name in suite.shows
        ]
        return ", ".join(f"{one['name']} {one['version']}" for one in manifests)


def environment(suite: Suite, below: Path) -> Environment:
    """The suite's environment in `below`, made if it is missing or of another lock. Raises `EnvironmentFailedError`."""
    lock = LOCKS / suite.lock if suite.runtime == "node" else LOCKS / f"{suite.lock}.txt"
    folder = below / suite.lock
    digest = _digest(lock)
    stamp = folder / _STAMP
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        below.mkdir(parents=True, exist_ok=True)
        (_install_node if suite.runtime == "node" else _install_python)(lock, folder)
        stamp.write_text(digest)
    program = folder / ("node_modules/.bin/node" if suite.runtime == "node" else "bin/python")
    return Environment(folder, program)


def _install_python(lock: Path, folder: Path) -> None:
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--no-deps", "-r", str(lock)])  # the lock is complete: a need that is missing shows at import


def _install_node(lock: Path, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise EnvironmentFailedError("npm is not installed; it comes with Node.js")
    shutil.copytree(lock, folder)
    _run([npm, "ci", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentFailedError(f"{command[0]} has not finished within {INSTALL_S} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise EnvironmentFailedError(said[-1])


def _digest(lock: Path) -> str:
    files = sorted(lock.iterdir()) if lock.is_dir() else [lock]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
