"""The built-in prompt cache: a hash-chained tree of blocks in memory, and an optional tier on disk."""

from ortserve.plugins.prefix_cache.cache import PrefixCache

__all__ = ["PrefixCache"]
