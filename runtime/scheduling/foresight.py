"""Prepares the step after the one a device computes, while it computes. Knows no logits and no sampling.

Where every row of a step is a plain decode and nobody else can get in, the next step is the same rows one token
further: all of it but the tokens is known before they are drawn. It is launched as soon as they are, if no row has
ended; the bookkeeping of the step before then happens while the device works. Where anything else may happen, nothing
is prepared and the scheduler plans as always.
"""

from __future__ import annotations

from collections.abc import Sequence as Values
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from ortserve.runtime.scheduling.scheduler import Scheduler
from ortserve.runtime.scheduling.sequence import Sequence
from ortserve.runtime.speculation.verify import Picked
from ortserve.runtime.step import Step

MAX_IN_A_ROW = 16  # steps: then one is planned as always, which looks at the cache's threads and at who waits
_UNKNOWN = 0  # stands for a token until it is drawn


@runtime_checkable
class PreparingRunner(Protocol):
    """A runner whose device computes while the host goes on."""

    def prepare(self, step: Step) -> Any:
        """The arrays of a step of plain decodes without moves, whatever its tokens. Touches no memory of the device."""

    def launch(self, prepared: Any, tokens: Values[int]) -> Any:
        """Enqueue it with these tokens, one per row, once the step before has been waited for; logits as of `run`."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The next step but for its tokens."""

    step: Step
    sequences: tuple[Sequence, ...]  # of its rows
    prepared: Any


@dataclass(frozen=True, slots=True)
class Launched:
    """A foreseen step that has been enqueued, or could not be."""

    step: Step
    logits: Any = None
    failure: Exception | None = None


class Foresight:
    """Decides when the next step is known early, and prepares it."""

    def __init__(self, scheduler: Scheduler, runner: PreparingRunner) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._num_in_a_row = 0

    def look(self, step: Step) -> Foreseen | None:
        """What follows `step`, which the device computes now, unless a row ends; None where that is open.

        Takes the blocks that the rows grow into.
        """
        self._num_in_a_row += 1
        if self._num_in_a_row > MAX_IN_A_ROW:
            self._num_in_a_row = 0
            return None
        sequences = self._sequences(step)
        if sequences is None or not self._scheduler.placement.is_settled(len(step.rows)):
            return None
        wanted = [(sequence, row.end + 1) for sequence, row in zip(sequences, step.rows, strict=True)]
        if not self._scheduler.placement.reserve_all(wanted):
            return None
        rows = tuple(
            replace(row, start=row.end, tokens=(_UNKNOWN,), blocks=tuple(sequence.blocks))
            for row, sequence in zip(step.rows, sequences, strict=True)
        )
        ahead = Step(step.number + 1, (), rows)
        return Foreseen(ahead, sequences, self._runner.prepare(ahead))

    def launch(self, foreseen: Foreseen, picked: Values[Picked]) -> Launched | None:
        """Enqueue the foreseen step, now that the step before has drawn its tokens; None when a row has ended."""
        tokens: list[int] = []
        for sequence, one in zip(foreseen.sequences, picked, strict=True):
            token = one.drawn[0].token_id
            if token is None or not sequence.goes_on_after(token):
                return None
            tokens.append(token)
        logits, failure = None, None
        try:
            logits = self._runner.launch(foreseen.prepared, tokens)
        except Exception as error:  # the step before is sound: it is committed first
            failure = error
        rows = tuple(replace(row, tokens=(token,)) for row, token in zip(foreseen.step.rows, tokens, strict=True))
        for sequence in foreseen.sequences:
            sequence.last_step = foreseen.step.number
        return Launched(Step(foreseen.step.number, (), rows), logits, failure)

    def _sequences(self, step: Step) -> tuple[Sequence, ...] | None:
        """Of the rows, if each is a plain decode of a sequence that is still there and bound by no grammar."""
        found: list[Sequence] = []
        for row in step.rows:
            sequence = self._scheduler.find(row.request_id)
            if (
                sequence is None
                or sequence.constraint is not None
                or len(row.tokens) != 1
                or row.num_logits != 1
                or row.num_scored
                or row.num_silent
            ):
                return None
            found.append(sequence)
        return tuple(found) or None
