"""What a wheel would hold: every folder with code is a package of the distribution, and every data file is named."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("gateway", "export", "runtime", "plugins")


@pytest.fixture(scope="module")
def setuptools() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def package_of(folder: Path) -> str:
    return ".".join(("ortserve", *folder.relative_to(ROOT).parts))


def test_every_folder_with_code_is_a_package(setuptools: dict[str, Any]) -> None:
    found = {package_of(file.parent) for top in TOPS for file in (ROOT / top).rglob("*.py")}
    assert found <= set(setuptools["packages"])
    for name in setuptools["packages"]:
        assert ROOT.joinpath(*name.split(".")[1:]).is_dir(), f"{name} has no folder"


def test_every_data_file_is_packed(setuptools: dict[str, Any]) -> None:
    packages, patterns = set(setuptools["packages"]), setuptools["package-data"]
    for top in TOPS:
        for file in (ROOT / top).rglob("*"):
            if not file.is_file() or file.suffix in (".py", ".pyc", ".md"):
                continue
            holder = next(folder for folder in file.parents if package_of(folder) in packages)
            path = file.relative_to(holder).as_posix()
            wanted = patterns.get(package_of(holder), [])
            assert any(fnmatch(path, pattern) for pattern in wanted), f"{file.relative_to(ROOT)} would be left out"
