"""Prepares the step after the one a device computes, while it computes. Knows no logits and no sampling.

Where every row of a step is a plain decode and nobody else can get in, the next step is the same rows one token
further: all of it but the tokens is known before they are drawn. Where the device draws them by itself it is launched
behind them, before they are known here: a row that they end is then computed once more, for nothing. Otherwise it is
launched as soon as they are known, if no row has ended. The bookkeeping of the step before happens while the device
works. Where anything else may happen, nothing is prepared and the scheduler plans as always.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Values
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from ortserve.runtime.scheduling.scheduler import Scheduler
from ortserve.runtime.sequence import Sequence
from ortserve.runtime.step import Row, Step
from ortserve.runtime.verify import Picked

MAX_IN_A_ROW = 16  # steps: then one is planned as always, which looks at the cache's threads and at who waits
_UNKNOWN = 0  # stands for a token until it is drawn


@runtime_checkable
class PreparingRunner(Protocol):
    """A runner whose device computes while the host goes on."""

    longest_short: int  # tokens of the longest row up to which a step may be launched as a whole
    was_unusual: bool  # the step enqueued last took longer than its like will: it was the first, or recorded

    def prepare(self, step: Step) -> Any:
        """The arrays of a step of plain decodes without moves, whatever its tokens. Touches no memory of the device."""

    def launch(self, prepared: Any, tokens: Values[int]) -> Any:
        """Enqueue it with these tokens, one per row, once the step before has been waited for; logits as of `run`."""

    def launch_behind(self, prepared: Any, address: int, num_rows: int) -> Any:
        """The same with tokens that work enqueued before will write there, on the device."""

    def settle(self) -> None:
        """Wait until the device has nothing left to do. Raises `DeviceError` for work that has failed."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The next step but for its tokens."""

    step: Step
    sequences: tuple[Sequence, ...]  # of its rows
    prepared: Any
    behind: Launched | None = None  # launched already, behind its tokens


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

    def look(self, step: Step, tokens: int | None = None) -> Foreseen | None:
        """What follows `step`, which the device computes now, unless a row ends; None where that is open.

        Takes the blocks that the rows grow into. With the address that the device draws `tokens` to, the step is
        launched behind them, unless a row ends whatever they are.
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
            _decode(row, row.end, _UNKNOWN, tuple(sequence.blocks))
            for row, sequence in zip(step.rows, sequences, strict=True)
        )
        ahead = Step(step.number + 1, (), rows)
        foreseen = Foreseen(ahead, sequences, self._runner.prepare(ahead))
        if tokens is None or any(sequence.is_about_to_end for sequence in sequences):
            return foreseen
        runner, prepared, address = self._runner, foreseen.prepared, tokens
        return replace(foreseen, behind=_launched(foreseen, lambda: runner.launch_behind(prepared, address, len(rows))))

    def launch(self, foreseen: Foreseen, picked: Values[Picked]) -> Launched | None:
        """The foreseen step, now that its tokens are known: enqueued by now, or None when there is none to enqueue.

        A row that has ended stays in a step that was enqueued before, which is over when this returns: blocks that are
        about to be free may be written by others than the device. Logits that were no numbers end such a step.
        """
        drawn = [one.drawn[0].token_id for one in picked]
        tokens = [token for token in drawn if token is not None]
        is_whole = len(tokens) == len(drawn)
        go_on = is_whole and all(map(Sequence.goes_on_after, foreseen.sequences, tokens))
        launched = foreseen.behind
        if launched is None:
            if not go_on:
                return None
            launched = _launched(foreseen, lambda: self._runner.launch(foreseen.prepared, tokens))
        elif not go_on:
            launched = self._settled(launched)
        if not is_whole:
            return None
        rows = tuple(
            _decode(row, row.start, token, row.blocks) for row, token in zip(launched.step.rows, tokens, strict=True)
        )
        return replace(launched, step=Step(launched.step.number, (), rows))

    def _settled(self, launched: Launched) -> Launched:
        try:
            self._runner.settle()
        except Exception as error:
            return replace(launched, failure=error)
        return launched

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


def _decode(row: Row, start: int, token: int, blocks: tuple[int, ...]) -> Row:
    """As `dataclasses.replace`, which takes several times as long: twice a step for every row."""
    return Row(row.request_id, row.slot, start, (token,), 1, blocks=blocks, first_rotary_row=row.first_rotary_row)


def _launched(foreseen: Foreseen, launch: Callable[[], Any]) -> Launched:
    logits, failure = None, None
    try:
        logits = launch()
    except Exception as error:  # the step before is sound: it is committed first
        failure = error
    for sequence in foreseen.sequences:
        sequence.last_step = foreseen.step.number
    return Launched(foreseen.step, logits, failure)
