"""The built-in caches obey the contract that authors inherit."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from ortserve.plugins.api import PluginContext, PromptCache
from ortserve.plugins.none import NoCache
from ortserve.plugins.prefix_cache import PrefixCache
from ortserve.plugins.testing import PromptCacheContract


class TestPrefixCache(PromptCacheContract):
    max_examples = 60

    def make(self, context: PluginContext) -> PromptCache:
        return PrefixCache(context)


class TestNoCache(PromptCacheContract):
    max_examples = 10

    def make(self, context: PluginContext) -> PromptCache:
        return NoCache(context)


class TestPrefixCacheWithDisk(PromptCacheContract):
    """Each example has a folder of its own, which a restart finds again."""

    max_examples = 40
    num_blocks = 40  # a quarter may wait to be written

    def make(self, context: PluginContext) -> PromptCache:
        folder = self.folders.setdefault(context.blocks, tempfile.mkdtemp(dir=self.tmp_path))
        return PrefixCache(replace(context, options={"path": folder}))

    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.folders: dict[object, str] = {}
