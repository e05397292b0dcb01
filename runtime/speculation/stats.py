"""What became of the drafts since the start, as counters for whoever asks. Knows no drafter and no step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class DraftStats:
    """Counters since the start, and one state.

    A place is that of a guess in its draft, from 1. Guesses after the first wrong one count as rejected.
    """

    is_on: bool = True  # False: the drafter has failed, and is not asked any more
    num_calls: int = 0  # times the drafter was asked
    num_missed_deadlines: int = 0
    drafting_s: float = 0.0  # the engine waited for guesses
    verifying_s: float = 0.0  # share of steps that guesses took, by their tokens
    drafts: Counter[str] = field(default_factory=Counter)  # verified, by source
    proposed: Counter[tuple[str, int]] = field(default_factory=Counter)  # guesses fed, by source and place
    accepted: Counter[tuple[str, int]] = field(default_factory=Counter)  # guesses that held, by source and place
    lengths: Counter[tuple[str, int]] = field(default_factory=Counter)  # drafts of which exactly so many guesses held

    @property
    def num_drafts(self) -> int:
        """Drafts verified."""
        return self.drafts.total()

    @property
    def num_proposed(self) -> int:
        """Guesses fed to the model."""
        return self.proposed.total()

    @property
    def num_accepted(self) -> int:
        """Guesses that held."""
        return self.accepted.total()

    def add(self, source: str, num_fed: int, num_accepted: int, seconds: float) -> None:
        """A draft has been verified."""
        self.drafts[source] += 1
        self.lengths[source, num_accepted] += 1
        self.verifying_s += seconds
        for place in range(1, num_fed + 1):
            self.proposed[source, place] += 1
            if place <= num_accepted:
                self.accepted[source, place] += 1

    def copy(self) -> DraftStats:
        """As it is now."""
        return DraftStats(
            self.is_on,
            self.num_calls,
            self.num_missed_deadlines,
            self.drafting_s,
            self.verifying_s,
            self.drafts.copy(),
            self.proposed.copy(),
            self.accepted.copy(),
            self.lengths.copy(),
        )
