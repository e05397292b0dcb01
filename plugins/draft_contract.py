"""The contract of drafters as tests to inherit. Knows no engine: it plays one. Needs the package hypothesis to run."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Mapping, Sequence
from random import Random
from typing import ClassVar

from ortserve.plugins.api import PluginContext
from ortserve.plugins.drafting import Drafter, DraftRequest, Ended, SequenceView, Verified
from ortserve.plugins.testing.arena import ModelArena
from ortserve.plugins.testing.laws import check_laws

NEVER = float("inf")  # a deadline
_NUM_ROWS = 4
_SLACK_BYTES = 64 << 10  # of tables that grow in jumps


class DrafterContract:
    """The laws of drafters, for pytest. The whole test of a drafter:

    class TestMyDrafter(DrafterContract):
        def make(self, context: PluginContext) -> Drafter:
            return MyDrafter(context)

    A drafter that keeps something of past requests must reach its bound within `num_requests`: give it small `options`.
    """

    vocab_size: ClassVar[int] = 32  # at least 32
    max_examples: ClassVar[int] = 25
    num_steps: ClassVar[int] = 40  # per example
    num_requests: ClassVar[int] = 40  # after which nothing may grow any more
    shrinks: ClassVar[bool] = True  # look for the shortest example that fails
    options: ClassVar[Mapping[str, str]] = {}

    def make(self, context: PluginContext) -> Drafter:
        """The drafter to test; called again for each example, and once more when a leak is suspected."""
        raise NotImplementedError

    def test_the_laws_of_drafters(self) -> None:
        """Random requests of three tenants in legal orders, each tenant with words of its own."""
        from ortserve.plugins.draft_machine import DrafterMachine

        contract = self

        class Machine(DrafterMachine):
            def __init__(self) -> None:
                super().__init__(contract)

        check_laws(
            Machine,
            max_examples=self.max_examples,
            num_steps=self.num_steps,
            shrinks=self.shrinks,
        )

    def test_what_one_tenant_got_is_no_guess_for_another(self) -> None:
        """One gets the same secret again and again; the other comes to where it began."""
        secret, opening = tuple(range(24, 32)), (1, 2, 3, 4)
        for salts in ((b"one", b"two"), (b"", b"one"), (b"one", b"")):
            found: list[tuple[int, ...]] = []
            for is_taught in (True, False):
                drafter = self.make(self.new_context())
                for number in range(3 if is_taught else 0):
                    _serve(drafter, f"taught {number}", salts[0], opening, (*opening, *secret))
                drafter.start(DraftRequest("asked", salts[1], opening))
                drafts = drafter.propose([SequenceView("asked", [*opening, *opening], 4, 8)], NEVER)
                found.append(drafts[0].tokens if drafts else ())
                drafter.close()
            leaked = set(found[0]) & set(secret)
            assert not leaked or found[0] == found[1], f"what {salts[0]!r} got is guessed for {salts[1]!r}: {leaked}"

    def test_memory_is_bounded_after_many_requests(self) -> None:
        """Nothing repeats; every other request has a salt of its own."""
        random = Random(7)  # noqa: S311  # text, no secret
        drafter = self.make(self.new_context())
        sizes = []
        tracemalloc.start()
        try:
            for number in range(3 * self.num_requests):
                prompt, reply = (tuple(random.randrange(self.vocab_size) for _ in range(60)) for _ in range(2))
                _serve(drafter, f"number {number}", b"%d" % number if number % 2 else b"", prompt, reply)
                if (number + 1) % self.num_requests == 0:
                    sizes.append(_traced())
        finally:
            tracemalloc.stop()
        drafter.close()
        assert sizes[2] <= sizes[1] + _SLACK_BYTES, (
            f"{self.num_requests} more requests left {sizes[2] - sizes[1]} bytes"
        )

    def test_forget_frees_what_a_request_took(self) -> None:
        """Long prompts and predictions, and one token of output each."""
        random = Random(8)  # noqa: S311  # text, no secret
        drafter = self.make(self.new_context())
        tracemalloc.start()
        try:
            before = _traced()
            names = [f"number {number}" for number in range(_NUM_ROWS)]
            for name in names:
                prompt, prediction = (tuple(random.randrange(self.vocab_size) for _ in range(2000)) for _ in range(2))
                drafter.start(DraftRequest(name, b"", prompt, prediction))
                drafter.propose([SequenceView(name, [*prompt, 0], len(prompt), 4)], NEVER)
                del prompt, prediction
            during = _traced()
            drafter.forget([Ended(name, (0,)) for name in names])
            after = _traced()
        finally:
            tracemalloc.stop()
        drafter.close()
        assert after - before <= (during - before) // 10 + _SLACK_BYTES, f"of {during - before} bytes {after} are left"

    def new_context(self) -> PluginContext:
        """What the drafter is made with."""
        arena = ModelArena(1, 4)
        return PluginContext(
            options=self.options,
            block_size=arena.block_size,
            bytes_per_block=arena.bytes_per_block,
            vocab_size=self.vocab_size,
            max_context=4096,
            eos_token_ids=(0,),
            digest="the model of the contract",
            byte_budget=1 << 24,
            clock=lambda: 0.0,
            wall_clock=lambda: 1.7e9,
            blocks=arena,
            io=arena,
            wake=lambda: None,
            warn=lambda _: None,
        )


def _serve(drafter: Drafter, name: str, salt: bytes, prompt: tuple[int, ...], reply: Sequence[int]) -> None:
    """One request from its start to its end, four tokens a step, whatever is guessed."""
    drafter.start(DraftRequest(name, salt, prompt))
    tokens = list(prompt)
    for begin in range(0, len(reply), 4):
        committed = tuple(reply[begin : begin + 4])
        for draft in drafter.propose([SequenceView(name, list(tokens), len(prompt), 3)], NEVER):
            drafter.observe([Verified(name, draft.source, len(draft.tokens), 0, committed)])
        tokens.extend(committed)
    drafter.propose([SequenceView(name, tokens, len(prompt), 3)], NEVER)
    drafter.forget([Ended(name, tuple(reply))])


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
