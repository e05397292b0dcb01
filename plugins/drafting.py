"""The contract between the engine and speculative drafters. Standard library only.

A drafter guesses the next tokens of running requests; the engine feeds the guesses together with the next real token
and draws at each position as it would have without them. A guess is accepted if and only if it equals the token drawn,
so a bad draft costs time and never changes a reply. Drafters therefore supply tokens; how probably each of them holds
they may say, so that the engine feeds those that pay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ortserve.plugins.api import PluginContext
from ortserve.plugins.small_model import NextDraw


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """A request that starts to generate. `prediction` are tokens the client expects, None without such a hint."""

    id: str
    salt: bytes  # nothing may be learnt from one salt for another
    prompt: tuple[int, ...]
    prediction: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class SequenceView:
    """One request as it stands. `tokens` are prompt and output; the sequence only ever grows at its end."""

    id: str
    tokens: Sequence[int]
    num_prompt_tokens: int
    max_draft: int  # more guesses than that are cut off; at least 1
    # How many of some next tokens the request's grammar allows, from the first. What it does not allow is cut off.
    allowed_prefix: Callable[[Sequence[int]], int] = len
    draw: NextDraw | None = None  # how its next token is drawn, for drafters that ask a small model
    max_length: int | None = None  # tokens that it may have at the end; None: not known
    # So many guesses are welcome where each says how probably it holds: the engine feeds those that pay. None: it
    # does not weigh them.
    room: int | None = None

    @property
    def most(self) -> int:
        """Guesses that a draft with chances may have."""
        return max(self.max_draft, self.room or 0)


@dataclass(frozen=True, slots=True)
class Draft:
    """Guesses of the tokens after the first `length` tokens of a request. One based on another length is dropped."""

    id: str
    length: int
    tokens: tuple[int, ...]
    source: str  # which of the drafter's ways of guessing, for the metrics
    # Of each token how probably it holds if those before it do, 0 to 1; empty: not known. The engine checks it against
    # what became of earlier ones, and believes a drafter that promises too much less.
    chances: tuple[float, ...] = ()

    @property
    def promise(self) -> float:
        """Tokens that will probably hold, by its chances."""
        total, chance = 0.0, 1.0
        for one in self.chances:
            chance *= one
            total += chance
        return total


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of one draft. Steps without a draft are not reported: the next view has their tokens."""

    id: str
    source: str
    num_proposed: int
    num_accepted: int
    tokens: tuple[int, ...]  # committed in this step: the accepted guesses and one more


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has ended, and all it was given: steps without a draft are not reported before."""

    id: str
    output: tuple[int, ...]


class Drafter(Protocol):
    """Proposes. All methods are called from one thread of the engine's, in turn with its steps.

    An exception switches the drafter off for good; requests go on undrafted. `propose` may be slow or even hang: past
    the deadline the step goes on without it, and a drafter that is late too often is switched off.
    """

    def start(self, request: DraftRequest) -> None:
        """A request starts to generate."""

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        """Guesses for any of the requests, the whole batch in one call. `deadline_s` is on the context's clock."""

    def observe(self, results: Sequence[Verified]) -> None:
        """What became of the last proposals."""

    def forget(self, ended: Sequence[Ended]) -> None:
        """These requests have ended, whether complete, cancelled or failed."""

    def close(self) -> None:
        """Stop threads and free memory; no other method is called afterwards."""


DrafterFactory: TypeAlias = Callable[[PluginContext], Drafter]
