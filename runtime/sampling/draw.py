"""How one position of one request is drawn: its rules, its seed and its place. Knows no logits."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.runtime.grammar.constraint import Bits
from ortserve.runtime.request import SamplingParams
from ortserve.runtime.sampling.history import TokenHistory
from ortserve.runtime.sampling.uniform import uniform

_GREEDY_BELOW = 1e-5  # a temperature this small is the limit; its inverse would overflow float32


@dataclass(frozen=True, slots=True)
class Draw:
    """How one position is drawn."""

    sampling: SamplingParams
    seed: int
    choice: int
    position: int  # of the token among the outputs, from 0
    history: TokenHistory | None = None  # present when a penalty is on
    banned: tuple[int, ...] = ()  # ids that must not be drawn here
    allowed: Bits | None = None  # by a grammar: no other id can be drawn; packed as `constraint.Mask` says

    def after(self, token: int) -> Draw:
        """How the next position is drawn, should `token` be drawn here. Part of `NextDraw`."""
        position = self.position + 1
        history = None if self.history is None else self.history.extended(token)
        return Draw(
            self.sampling,
            self.seed,
            self.choice,
            position,
            history,
            self.banned if position < self.sampling.min_tokens else (),
        )

    @property
    def is_greedy(self) -> bool:
        """The most likely token, always."""
        return self.sampling.temperature < _GREEDY_BELOW

    @property
    def is_truncated(self) -> bool:
        """Some ids may be cut before the draw."""
        sampling = self.sampling
        return sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0

    @property
    def uniform(self) -> float:
        """The random number of this position."""
        return uniform(self.seed, self.choice, self.position)
