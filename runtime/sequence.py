"""One request while it lives: the one mutable object per request, written only by the Scheduler."""

from __future__ import annotations

from collections.abc import Sequence as Values
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from ortserve.plugins.api import Hit, Ticket
from ortserve.runtime.grammar.constraint import Constraint, Mask
from ortserve.runtime.manifest import RotaryRegime
from ortserve.runtime.request import FinishReason, Request
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.history import TokenHistory


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
    regime: RotaryRegime  # how its positions rotate, for good
    constraint: Constraint | None = None  # of a request with a grammar: stands behind the last of `tokens`
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
    num_trailing: int = 1  # last tokens that came since logits were drawn from: one drawn, others forced by the grammar
    forced: tuple[int, ...] = ()  # what must come next and waits for its logits, which the request wants to see
    num_scored: int = 0  # prompt positions whose logits have judged the token after them
    num_accepted: int = 0  # draft tokens that equalled the token drawn
    num_rejected: int = 0
    acceptance: float = 0.0  # expected share of drafts that are accepted, kept by `adaptation`
    coverage: float = 1.0  # expected share of calls in which the drafter has a draft for it, kept by `adaptation`
    promised: float = 0.0  # guesses that should have held by what the drafter said of them, kept by `adaptation`
    kept: float = 0.0  # those that did
    hope: float = 0.0  # share of the way that a bad acceptance fades with each undrafted step, kept by `adaptation`
    is_cold: bool = False  # its prefix has been waited for in vain
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
        """Tokens not computed yet."""
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """The next step of this sequence computes what came since logits were drawn from: mostly one token."""
        return self.num_pending <= self.num_trailing

    @property
    def is_scoring(self) -> bool:
        """Log-probabilities of the prompt are wanted, and not all are known yet."""
        wanted = self.request.sampling.num_prompt_logprobs is not None
        return wanted and self.num_scored < self.num_prompt_tokens - 1

    def draws(self, drafts: Values[int], masks: Values[Mask] = ()) -> list[Draw]:
        """How the token after `tokens` is drawn, and those after each draft as if the drafts before had been drawn.

        `masks` belong to the same places when there is a grammar.
        """
        sampling, history = self.request.sampling, self.history
        found: list[Draw] = []
        for offset in range(len(drafts) + 1):
            if offset and history is not None:
                history = history.extended(drafts[offset - 1])
            position = self.num_output_tokens + offset
            is_early = position < sampling.min_tokens
            banned = tuple(sorted(self.eos_ids)) if is_early else ()
            allowed = None
            if masks:
                allowed = masks[offset].with_ends(self.stop_ids if is_early else self.eos_ids | self.stop_ids)
            found.append(Draw(sampling, self.seed, self.request.choice, position, history, banned, allowed))
        return found

    def take(self, token: int) -> bool:
        """Append a token to the output. False when the grammar's reader has failed."""
        self.tokens.append(token)
        if self.history is not None:
            self.history.add(token)
        return self.constraint is None or self.is_end(token) or self.constraint.accept(token)

    def is_end(self, token: int) -> bool:
        """Whether the token ends the request and is not part of the reply's text."""
        return token in self.eos_ids or token in self.stop_ids

    def next_draw(self) -> Draw:
        """How the token after `tokens` is drawn, for a drafter: stays as it is, and asks for no log-probabilities."""
        draw = self.draws(())[0]
        sampling, history = draw.sampling, draw.history
        if sampling.num_logprobs is not None:
            sampling = replace(sampling, num_logprobs=None)
        return replace(draw, sampling=sampling, history=None if history is None else history.copy())

    @property
    def is_about_to_end(self) -> bool:
        """The next token is the last, whatever it is."""
        return self.num_output_tokens + 1 >= self.max_tokens

    def goes_on_after(self, token: int) -> bool:
        """Whether drawing `token`, which is not among `tokens` yet, would not end the request. Not for grammars."""
        return not self.is_end(token) and not self.is_about_to_end

    def finish_after(self, token: int) -> FinishReason | None:
        """Whether drawing `token`, the last of `tokens`, ends the request."""
        if self.is_end(token) or (self.constraint is not None and self.constraint.is_complete):
            return FinishReason.STOP
        if self.num_output_tokens >= self.max_tokens:
            return FinishReason.LENGTH
        return None
