"""One request while it lives: the one mutable object per request, written only by the Scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from ortserve.runtime.request import Request
from ortserve.runtime.sampler import TokenHistory


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
    stop_ids: frozenset[int]  # end-of-sequence and stop ids that end this request
    history: TokenHistory | None  # only when a penalty is on
    stage: Stage = Stage.WAITING
    num_computed: int = 0  # tokens whose keys and values are stored
    row: int | None = None
    blocks: list[int] = field(default_factory=list)  # device blocks; counts the row's resident memory
    host_blocks: list[int] = field(default_factory=list)  # while SWAPPED
    num_preemptions: int = 0
    last_step: int = -1  # number of the last step that had this sequence
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
