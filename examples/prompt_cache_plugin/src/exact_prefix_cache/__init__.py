"""A third party's prompt cache: what its entry point names."""

from exact_prefix_cache.cache import ExactPrefixCache

__all__ = ["ExactPrefixCache"]
