"""The null object of drafters: guesses nothing, remembers nothing."""

from __future__ import annotations

from collections.abc import Sequence

from ortserve.plugins.drafting import Draft, DraftRequest, Ended, SequenceView, Verified


class NoDrafter:
    """Every step goes on undrafted."""

    def __init__(self, context: object = None) -> None:
        del context

    def start(self, request: DraftRequest) -> None:
        """Nothing to prepare."""

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        """Nothing."""
        del views, deadline_s
        return ()

    def observe(self, results: Sequence[Verified]) -> None:
        """Nothing to learn."""

    def forget(self, ended: Sequence[Ended]) -> None:
        """Nothing to free."""

    def close(self) -> None:
        """Nothing to stop."""
