"""What an author inherits. Imports hypothesis only when the test runs, so that installing it is optional."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ortserve.plugins.api import CacheQuery, PluginContext, PromptCache
from ortserve.plugins.testing.laws import check_laws


class PromptCacheContract:
    """The laws of prompt caches, for pytest. The whole test of a cache:

    class TestMyCache(PromptCacheContract):
        def make(self, context: PluginContext) -> PromptCache:
            return MyCache(context)
    """

    block_size: ClassVar[int] = 4  # tokens
    num_blocks: ClassVar[int] = 12  # of the arena: few, so that room is always short
    max_examples: ClassVar[int] = 100
    num_steps: ClassVar[int] = 50  # per example
    is_random: ClassVar[bool] = True  # False: the same examples every time
    shrinks: ClassVar[bool] = True  # look for the shortest example that fails
    options: ClassVar[Mapping[str, str]] = {}

    def make(self, context: PluginContext) -> PromptCache:
        """The cache to test; called again for each example, and once more when it is restarted."""
        raise NotImplementedError

    def test_the_laws_of_prompt_caches(self) -> None:
        """Random requests in legal orders; the arena's bytes tell whether a hit is what it claims to be."""
        from ortserve.plugins.testing.machine import PromptCacheMachine

        contract = self

        class Machine(PromptCacheMachine):
            def __init__(self) -> None:
                super().__init__(contract)

        check_laws(
            Machine,
            max_examples=self.max_examples,
            num_steps=self.num_steps,
            shrinks=self.shrinks,
            is_random=self.is_random,
        )

    def test_what_may_be_kept_in_memory_only_does_not_outlive_the_process(self) -> None:
        """A request that is not durable leaves nothing that a restart finds; a durable one may."""
        from ortserve.plugins.testing.machine import new_play

        play = new_play(self)
        for number, durable in enumerate((True, False)):
            tokens = (number,) * (3 * self.block_size)
            query = CacheQuery(tokens, len(tokens) - 1, b"", durable=durable)
            play.look_up(query)
            play.start(play.asking[0])
            play.compute(play.computing[0], (0,), len(tokens))
            play.finish(play.computing[0], ok=True)
        play.settle()
        play.cache.close()
        play.restart(self.make(play.context))
        play.check()
        play.close()
