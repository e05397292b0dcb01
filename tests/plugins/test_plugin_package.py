"""The third-party package in examples/ installs, is found by name, and passes its own test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "examples" / "prompt_cache_plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package has been installed, without network."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(SOURCE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder / "site"


def run(site: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        env=environment,
        cwd=site.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_registry_finds_it_beside_the_built_in_ones(site: Path) -> None:
    code = """
from ortserve.plugins.registry import PROMPT_CACHES, installed, load
print(*[(one.name, one.distribution, one.version) for one in installed(PROMPT_CACHES)])
print(load(PROMPT_CACHES, "exact").__module__)
"""
    listed, module = run(site, "-c", code).splitlines()
    assert "('exact', 'ortserve-exact-prefix-cache', '0.1.0')" in listed
    assert f"('prefix', 'ortserve', '{version('ortserve')}')" in listed
    assert module == "exact_prefix_cache.cache"


def test_its_own_test_passes(site: Path) -> None:
    tests = site.parent / "source" / "tests"
    (tests / "conftest.py").write_text(
        "from ortserve.plugins.testing import PromptCacheContract\nPromptCacheContract.max_examples = 25\n"
    )
    (site.parent / "pytest.ini").write_text("[pytest]\n")
    assert "2 passed" in run(site, "-m", "pytest", "-q", "-p", "no:randomly", str(tests))


def test_its_test_is_as_short_as_promised() -> None:
    lines = (SOURCE / "tests" / "test_exact_prefix_cache.py").read_text().splitlines()
    assert len([line for line in lines if line and "import" not in line]) == 3
