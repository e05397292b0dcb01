"""The Python environment optimum runs in: this one where the extra is installed, else one made on demand.

optimum pins libraries that the rest of ortserve must not be held to, so it never shares a process with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from ortserve.export.errors import ExportError

EXTRA = "optimum"
COMPLETE = "complete"  # a file in the environment: everything was installed


def optimum_requirements() -> tuple[str, ...]:
    """What the `optimum` extra of this package asks for, as pip takes it."""
    marker = f'extra == "{EXTRA}"'
    found = [line.partition(";") for line in requires("ortserve") or []]
    return tuple(sorted(name.strip() for name, _, condition in found if condition.strip().replace("'", '"') == marker))


def optimum_python(cache_folder: Path, *, progress: bool) -> Path:
    """An interpreter that can run optimum.

    Raises `ExportError` when there is none and it cannot be made: without network, or without space.
    """
    requirements = optimum_requirements()
    if all(_is_installed(requirement) for requirement in requirements):
        return Path(sys.executable)
    return pinned_python(EXTRA, requirements, cache_folder, progress=progress, remedy=remedy())


def pinned_python(name: str, requirements: tuple[str, ...], cache_folder: Path, *, progress: bool, remedy: str) -> Path:
    """The interpreter of an environment of exactly these, installed on first use.

    Raises `ExportError` with the remedy when it cannot be made.
    """
    digest = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    folder = cache_folder / f"{name}-{digest}"
    if not (folder / COMPLETE).exists():
        with _locked(folder):
            if not (folder / COMPLETE).exists():
                try:
                    _make(folder, requirements, progress=progress)
                except ExportError as error:
                    raise ExportError(f"{error}: {remedy}") from None
    return folder / "bin" / "python"


def default_environments() -> Path:
    """Where environments are kept: beside the cache of exported models."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ortserve" / "environments"


def _is_installed(requirement: str) -> bool:
    """Whether this environment has what a pin asks for; a requirement that is no pin of one version counts as no."""
    name, found, wanted = requirement.partition("==")
    try:
        return bool(found) and version(name).split("+", maxsplit=1)[0] == wanted
    except PackageNotFoundError:
        return False


def _make(folder: Path, requirements: tuple[str, ...], *, progress: bool) -> None:
    if progress:
        sys.stderr.write(f"installing {', '.join(requirements)} into {folder} (once)\n")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process has left
    try:
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ExportError(f"{folder} cannot be made ({error})") from None
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip failed")
        raise ExportError(f"{', '.join(requirements)} cannot be installed ({reason.strip()[:200]})")
    (folder / COMPLETE).write_text("\n".join(requirements) + "\n")


def remedy() -> str:
    """What to do where there is no environment."""
    return f"connect to a package index, or prepare one environment for both with pip install 'ortserve[{EXTRA}]'"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes may ask at once: one installs, the other waits."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_suffix(".lock").open("a")
    except OSError as error:
        raise ExportError(f"{folder.parent} cannot be written ({error.strerror}): set XDG_CACHE_HOME") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
