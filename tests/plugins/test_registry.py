"""Finding plugins: what strangers' packages may get wrong, and who is harmed by it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortserve.plugins.none import NoCache
from ortserve.plugins.prefix_cache import PrefixCache
from ortserve.plugins.registry import PROMPT_CACHES, Installed, PluginError, installed, load

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Writes a distribution with one entry point onto the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(distribution: str, target: str, *, name: str = "mine", version: str = "1.0", module: str = "") -> None:
        folder = tmp_path / f"{distribution}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (folder / "entry_points.txt").write_text(f"[{PROMPT_CACHES}]\n{name} = {target}\n")
        if module:
            (tmp_path / f"{target.partition(':')[0]}.py").write_text(module)

    return write


def test_the_built_in_caches_come_through_the_same_door() -> None:
    assert load(PROMPT_CACHES, "none") is NoCache
    assert load(PROMPT_CACHES, "prefix") is PrefixCache
    assert {(one.name, one.distribution) for one in installed(PROMPT_CACHES)} >= {
        ("none", "ortserve"),
        ("prefix", "ortserve"),
    }


def test_listing_imports_nothing(install: Install) -> None:
    install("stranger", "stranger_module:Cache", version="2.1", module="raise SystemExit('imported')")
    found = [one for one in installed(PROMPT_CACHES) if one.name == "mine"]
    assert found == [Installed(PROMPT_CACHES, "mine", "stranger", "2.1", "stranger_module:Cache")]
    assert "stranger_module" not in sys.modules


def test_a_broken_plugin_that_nobody_names_is_harmless(install: Install) -> None:
    install("stranger", "no_such_module:Cache")
    assert load(PROMPT_CACHES, "prefix") is PrefixCache
    assert load(PROMPT_CACHES, "none") is NoCache


def test_a_name_nobody_has_is_told_with_those_that_exist() -> None:
    with pytest.raises(PluginError, match=r"no ortserve.prompt_cache plugin is called absent: .*none, prefix"):
        load(PROMPT_CACHES, "absent")
    with pytest.raises(PluginError, match="installed are none"):
        load("ortserve.nothing", "absent")


def test_two_owners_of_one_name_are_both_told(install: Install) -> None:
    install("first", "first_module:Cache")
    install("second", "second_module:Cache")
    with pytest.raises(PluginError, match="first and second both claim"):
        load(PROMPT_CACHES, "mine")


def test_a_stranger_cannot_take_a_built_in_name(install: Install) -> None:
    install("stranger", "stranger_module:Cache", name="prefix")
    with pytest.raises(PluginError, match="ortserve and stranger both claim"):
        load(PROMPT_CACHES, "prefix")


@pytest.mark.parametrize(
    ("target", "module", "reason"),
    [
        ("absent_module:Cache", "", "ModuleNotFoundError"),
        ("failing_module:Cache", "raise RuntimeError('at import')", "RuntimeError: at import"),
        ("wrong_syntax:Cache", "def (", "SyntaxError"),
        ("without_it:Cache", "x = 1", "AttributeError"),
        ("needs_more:Cache", "import a_library_that_is_not_installed", "a_library_that_is_not_installed"),
    ],
)
def test_what_cannot_be_imported_says_whose_it_is(install: Install, target: str, module: str, reason: str) -> None:
    install("stranger", target, version="0.3", module=module)
    with pytest.raises(PluginError, match=r"^[^\n]*$") as caught:
        load(PROMPT_CACHES, "mine")
    assert "of stranger 0.3 cannot be imported" in str(caught.value)
    assert reason in str(caught.value)


def test_what_cannot_be_called_is_refused(install: Install) -> None:
    install("stranger", "uncallable:Cache", module="Cache = 3")
    with pytest.raises(PluginError, match="cannot be called"):
        load(PROMPT_CACHES, "mine")
