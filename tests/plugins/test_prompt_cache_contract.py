"""The built-in caches obey the contract that authors inherit."""

from __future__ import annotations

from ortserve.plugins.api import PluginContext, PromptCache
from ortserve.plugins.none import NoCache
from ortserve.plugins.prefix_cache import PrefixCache
from ortserve.plugins.testing import PromptCacheContract


class TestPrefixCache(PromptCacheContract):
    def make(self, context: PluginContext) -> PromptCache:
        return PrefixCache(context)


class TestNoCache(PromptCacheContract):
    max_examples = 10

    def make(self, context: PluginContext) -> PromptCache:
        return NoCache(context)
