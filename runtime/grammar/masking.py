"""Computes the masks of a step on a thread of its own while the model runs. Knows no grammar and no logits."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Values
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from ortserve.runtime.grammar.constraint import Constraint, Grammars, Mask

Masks: TypeAlias = Mapping[str, tuple[Mask, ...]]  # by request id: at the next position and after each guess


class Masking:
    """The masks of one engine's steps. Between `begin` and `result` nobody else may use the constraints."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ortserve-masks")

    def begin(self, wanted: Values[tuple[str, Constraint, Values[int]]]) -> Future[Masks]:
        """Start on the masks of these requests: their constraints, and the guesses of the step that runs now."""
        if not wanted:
            nothing: Future[Masks] = Future()
            nothing.set_result({})
            return nothing
        return self._executor.submit(self._compute, wanted)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=False)

    def _compute(self, wanted: Values[tuple[str, Constraint, Values[int]]]) -> Masks:
        found = self._grammars.masks([(constraint, guesses) for _, constraint, guesses in wanted])
        return {request_id: masks for (request_id, _, _), masks in zip(wanted, found, strict=True)}
