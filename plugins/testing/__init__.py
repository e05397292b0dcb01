"""The contracts of plugins as tests to inherit. Knows no engine: it plays one. Needs the package hypothesis to run."""

from ortserve.plugins.testing.arena import ModelArena
from ortserve.plugins.testing.contract import PromptCacheContract

__all__ = ["ModelArena", "PromptCacheContract"]
