"""A drafter's side of an engine: contexts, and greedy verification of a reply that is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from ortserve.plugins.api import PluginContext
from ortserve.plugins.drafting import Drafter, DraftRequest, Ended, SequenceView, Verified
from ortserve.plugins.testing import ModelArena

NEVER = float("inf")


def new_context(options: Mapping[str, str] | None = None, vocab_size: int = 1 << 16) -> PluginContext:
    arena = ModelArena(1, 4)
    return PluginContext(
        options=options or {},
        block_size=4,
        bytes_per_block=arena.bytes_per_block,
        vocab_size=vocab_size,
        max_context=1 << 16,
        eos_token_ids=(1,),
        digest="",
        byte_budget=1 << 25,
        clock=monotonic,
        wall_clock=monotonic,
        blocks=arena,
        io=arena,
        wake=lambda: None,
        warn=lambda _: None,
    )


@dataclass(frozen=True, slots=True)
class Replay:
    """What drafting made of one reply."""

    num_tokens: int
    num_steps: int
    num_proposed: int
    num_accepted: int

    @property
    def tokens_per_step(self) -> float:
        return self.num_tokens / self.num_steps

    @property
    def acceptance(self) -> float:
        return self.num_accepted / max(1, self.num_proposed)


def replay(
    drafter: Drafter,
    prompt: Sequence[int],
    reply: Sequence[int],
    *,
    id: str = "one",
    salt: bytes = b"",
    prediction: Sequence[int] | None = None,
    max_draft: int = 8,
) -> Replay:
    """Run one request whose reply is already known, from its start until it is forgotten."""
    drafter.start(DraftRequest(id, salt, tuple(prompt), None if prediction is None else tuple(prediction)))
    tokens = [*prompt, reply[0]]  # the prompt's own step gives the first
    end = len(prompt) + len(reply)
    num_steps = num_proposed = num_accepted = 0
    while len(tokens) < end:
        drafts = drafter.propose([SequenceView(id, tokens, len(prompt), max_draft)], NEVER)
        assert len(drafts) <= 1
        guesses = drafts[0].tokens if drafts else ()
        rest = reply[len(tokens) - len(prompt) :]
        accepted = 0
        while accepted < min(len(guesses), len(rest)) and guesses[accepted] == rest[accepted]:
            accepted += 1
        committed = tuple(rest[: accepted + 1])
        tokens.extend(committed)
        num_steps, num_proposed, num_accepted = num_steps + 1, num_proposed + len(guesses), num_accepted + accepted
        if guesses:
            drafter.observe([Verified(id, drafts[0].source, len(guesses), accepted, committed)])
    drafter.forget([Ended(id, tuple(reply))])
    return Replay(len(reply) - 1, num_steps, num_proposed, num_accepted)
