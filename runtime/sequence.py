"""One request while it lives: the one mutable object per request, written only by the Scheduler."""

from __future__ import annotations

from collections.abc import Sequence as Values
from dataclasses import dataclass, field
from enum import Enum, auto

from ortserve.plugins.api import Hit, Ticket
from ortserve.runtime.history import TokenHistory
from ortserve.runtime.request import FinishReason, Request
from ortserve.runtime.sampler import Draw


class Stage(Enum):
    """Where a sequence's keys and values are."""

    WAITING = auto()  # nowhere: everything is computed (again) from its tokens
    RUNNING = auto()  # in a row
    SWAPPED = auto()  # in host blocks, copied out by a preemption


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens and places of one request. `0 <= num_computed <= len(tokens)` at all times."""

    request: Request
    seed: int
    max_tokens: int  # resolved: fits the context
    arrival: int  # order of submission; smaller is older
    arrived_s: float
    tokens: list[int]  # prompt, then output
    eos_ids: frozenset[int]  # ids that end this request once min_tokens are drawn
    stop_ids: frozenset[int]  # ids that end this request at any time
    history: TokenHistory | None  # only when a penalty is on
    stage: Stage = Stage.WAITING
    num_computed: int = 0  # tokens whose keys and values are stored
    slot: int | None = None  # row of the KV store, while RUNNING
    blocks: list[int] = field(default_factory=list)  # counts the row's resident memory, while RUNNING
    host_blocks: list[int] = field(default_factory=list)  # while SWAPPED
    held_priority: int = 0  # while RUNNING: with the age it was admitted at; only a larger one displaces it
    num_reused: int = 0  # prompt tokens taken from the cache or from another choice of the same prompt
    num_saved: int = 0  # leading tokens that the cache has, or has been offered; a multiple of the block size
    num_written: int = 0  # prompt tokens offered to the cache
    seconds_unsaved: float = 0.0  # spent on computing what has not been saved yet
    num_accepted: int = 0  # draft tokens that equalled the token drawn
    num_rejected: int = 0
    acceptance: float = 0.0  # expected share of drafts that are accepted, kept by `adaptation`
    hit: Hit | None = None  # while queued and waiting for it, and from admission until its blocks are copied
    ticket: Ticket | None = None  # while it computes tokens that others may use
    num_preemptions: int = 0
    last_step: int = -1  # number of the last step that fed this sequence
    waiting_since_s: float = 0.0
    first_run_s: float | None = None
    first_token_s: float | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens the request came with."""
        return len(self.request.prompt)

    @property
    def num_output_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def num_pending(self) -> int:
        """Tokens not computed yet; 1 means the next step of this sequence is a plain decode."""
        return len(self.tokens) - self.num_computed

    def draws(self, drafts: Values[int]) -> list[Draw]:
        """How the token after `tokens` is drawn, and those after each draft as if the drafts before had been drawn."""
        sampling, history = self.request.sampling, self.history
        found: list[Draw] = []
        for offset in range(len(drafts) + 1):
            if offset and history is not None:
                history = history.extended(drafts[offset - 1])
            position = self.num_output_tokens + offset
            is_early = position < sampling.min_tokens
            banned = tuple(sorted(self.eos_ids)) if is_early else ()
            found.append(Draw(sampling, self.seed, self.request.choice, position, history, banned))
        return found

    def finish_after(self, token: int) -> FinishReason | None:
        """Whether drawing `token`, the last of `tokens`, ends the request."""
        if token in self.eos_ids or token in self.stop_ids:
            return FinishReason.STOP
        if self.num_output_tokens >= self.max_tokens:
            return FinishReason.LENGTH
        return None
