"""The immutable plan of one model call. A prefill chunk, a decode and a verification are all just rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

EXACT_CUT = 128  # in deterministic mode chunks end at its multiples: attention then gives the same bits for any cut


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one sequence in this step.

    ```
    stored:   [0 ............ start)
    fed:                     [start ............... start + len(tokens))
    logits:                         [num_logits)[num_silent)
                                    [num_scored)[drawn)
    ```
    """

    request_id: str
    slot: int  # row of the KV store
    start: int  # position of the first token fed
    tokens: tuple[int, ...]
    num_logits: int  # 0 for a prompt chunk that is not the last, 1 for a decode, k + 1 to verify k drafts
    num_scored: int = 0  # the first of the logits rows only judge the prompt tokens that follow them
    num_silent: int = 0  # tokens after those with logits; they are fed again to be judged, so nothing is gained yet
    blocks: tuple[int, ...] = ()  # where the row's tokens lie, in layout "pages"
    first_rotary_row: int = 0  # of the rotary tables, where position 0 is

    @property
    def positions(self) -> range:
        """Rows of the rotary tables, one for each token."""
        first = self.first_rotary_row + self.start
        return range(first, first + len(self.tokens))

    @property
    def end(self) -> int:
        """Tokens stored in the row after this step, drafts included."""
        return self.start + len(self.tokens)

    @property
    def num_drawn(self) -> int:
        """Logits rows that tokens are drawn from."""
        return self.num_logits - self.num_scored

    @property
    def drafts(self) -> tuple[int, ...]:
        """Guesses at the end of `tokens`: every drawn logits row but the last verifies one."""
        return self.tokens[len(self.tokens) - self.num_drawn + 1 :] if self.num_drawn > 1 else ()


@dataclass(frozen=True, slots=True)
class SwapOut:
    """Copy a row's first tokens to host blocks, then give the row's memory back."""

    request_id: str
    slot: int
    num_tokens: int
    host_blocks: tuple[int, ...]
    blocks: tuple[int, ...] = ()  # the row's, in layout "pages"


@dataclass(frozen=True, slots=True)
class SwapIn:
    """Copy host blocks into a row, bit for bit, then give the host blocks' memory back."""

    request_id: str
    slot: int
    num_tokens: int
    host_blocks: tuple[int, ...]
    blocks: tuple[int, ...] = ()  # the row's, in layout "pages"


@dataclass(frozen=True, slots=True)
class CopyRow:
    """Copy the first tokens of one row into another: the choices of one prompt share its computation."""

    request_id: str  # whose row is written
    source: int
    slot: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class CopyBlock:
    """Copy one block: what follows a shared prefix goes into a copy, since shared blocks are never written."""

    request_id: str  # whose block is written
    source: int
    block: int


@dataclass(frozen=True, slots=True)
class LoadBlocks:
    """Copy the first `num_tokens` tokens from host blocks into a row; the blocks stay as they are."""

    request_id: str
    slot: int
    num_tokens: int
    host_blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SaveBlocks:
    """Copy tokens `[start, end)` of a row to host blocks; `start` is a multiple of the block size."""

    request_id: str
    slot: int
    start: int
    end: int
    host_blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """Give a row's memory back to the system."""

    slot: int


Move: TypeAlias = SwapOut | SwapIn | CopyRow | CopyBlock | LoadBlocks | SaveBlocks | ReleaseRow


@dataclass(frozen=True, slots=True)
class Step:
    """What the runner does next: first the moves, in order, then one model call over the rows (none: moves only)."""

    number: int
    moves: tuple[Move, ...]
    rows: tuple[Row, ...]

    @property
    def longest(self) -> int:
        """Tokens of the row that feeds the most; 0 without rows."""
        return max((len(row.tokens) for row in self.rows), default=0)

    @property
    def num_tokens(self) -> int:
        """Packed tokens of the model call."""
        return sum(len(row.tokens) for row in self.rows)

    @property
    def num_logits(self) -> int:
        """Rows of the logits it returns, in the order of `rows`."""
        return sum(row.num_logits for row in self.rows)

    @property
    def num_attended(self) -> int:
        """Query-key pairs of the attention: what its time grows with."""
        return sum(len(row.tokens) * row.end for row in self.rows)

    @property
    def request_ids(self) -> frozenset[str]:
        """Everyone whose state this step touches: lost if it is abandoned. What is saved for a cache is not state."""
        moved = [move.request_id for move in self.moves if not isinstance(move, ReleaseRow | SaveBlocks)]
        return frozenset([*moved, *(row.request_id for row in self.rows)])
