from exact_prefix_cache import ExactPrefixCache

from ortserve.plugins.api import PluginContext, PromptCache
from ortserve.plugins.testing import PromptCacheContract


class TestExactPrefixCache(PromptCacheContract):
    def make(self, context: PluginContext) -> PromptCache:
        return ExactPrefixCache(context)
