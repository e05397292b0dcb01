"""Plugins from elsewhere in a real engine: the living page's example is used, and what is no plugin is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ortserve import runtime
from ortserve.plugins import registry
from ortserve.plugins.registry import DRAFTERS, PROMPT_CACHES
from ortserve.runtime.errors import PluginUnusableError
from ortserve.runtime.testing import write_synthetic_model

PAGE = Path(registry.__file__).with_name("README.md")
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Writes a distribution with one plugin, `stranger`, onto the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(group: str, module: str) -> None:
        folder = tmp_path / "stranger-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        name = f"stranger_{tmp_path.name.replace('-', '_')}"  # modules of other tests stay imported
        (folder / "entry_points.txt").write_text(f"[{group}]\nstranger = {name}:make\n")
        (tmp_path / f"{name}.py").write_text(module)

    return write


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_synthetic_model(tmp_path / "model", max_context=512)
    return tmp_path / "model"


def test_the_cache_of_the_living_page_saves_tokens(install: Install, model: Path) -> None:
    example = next(re.finditer(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))[1]
    install(PROMPT_CACHES, f"{example}\n\nmake = DictionaryCache\n")
    prompt = [place * place % 50 + 1 for place in range(200)]
    sampling = runtime.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with runtime.open(model, runtime.EngineConfig(max_rows=2, prompt_cache="stranger")) as opened:
        first, second = opened.generate(prompt, sampling), opened.generate(prompt, sampling)
    assert first.usage.num_cached_tokens == 0
    assert second.usage.num_cached_tokens >= 100, "whole blocks of the prompt"
    assert first.token_ids == second.token_ids


@pytest.mark.parametrize(
    ("group", "option"), [(PROMPT_CACHES, "prompt_cache"), (DRAFTERS, "drafter")], ids=["cache", "drafter"]
)
@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("def make(context): return None", "is NoneType, which has no .*: report it to its author"),
        ("class make:\n    def __init__(self, context): pass\n    def close(self): pass", "is make, which has no"),
        ("def make(context): raise SystemExit('over')", r"cannot start \(over\)"),
        ("make = 5", "cannot be called"),
    ],
)
def test_what_is_no_plugin_is_named_at_the_start(
    install: Install, model: Path, group: str, option: str, module: str, reason: str
) -> None:
    install(group, module)
    config = runtime.EngineConfig(max_rows=2, **{option: "stranger"})  # type: ignore[arg-type]
    with pytest.raises(PluginUnusableError, match=f"stranger.* {reason}"), runtime.open(model, config):
        pass
