"""Decides what each step computes. The only writer of sequences and block pools; knows no tensors and draws nothing.

Planning moves sequences between stages (admission, preemption) and lists the bytes to move; committing a step that has
run moves its sequences forward. Where they wait and whom they displace is `placement`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Values
from dataclasses import dataclass
from typing import TypeAlias

from ortserve.runtime.pace import Pace
from ortserve.runtime.placement import Placement
from ortserve.runtime.plan import EXACT_CUT, EnginePlan
from ortserve.runtime.request import FinishReason
from ortserve.runtime.sampler import Drawn
from ortserve.runtime.sequence import Sequence, Stage
from ortserve.runtime.step import Row, Step

Drafts: TypeAlias = Mapping[str, tuple[int, ...]]  # guesses by request id, each based on the tokens of now


@dataclass(frozen=True, slots=True)
class Advance:
    """What one committed step did to one sequence that drew tokens."""

    sequence: Sequence
    drawn: tuple[Drawn, ...]  # up to and including the one that ended it
    num_drafts: int
    finish: FinishReason | None


class Scheduler:
    """First come, first served, larger priorities first; decodes and prompt chunks share each step."""

    def __init__(self, plan: EnginePlan, pace: Pace, placement: Placement) -> None:
        self.placement = placement
        self._plan = plan
        self._pace = pace
        self._sequences: dict[str, Sequence] = {}

    @property
    def sequences(self) -> Iterable[Sequence]:
        """Every sequence that has not finished, in order of submission."""
        return self._sequences.values()

    @property
    def has_work(self) -> bool:
        """A step can be planned now or later."""
        return bool(self._sequences) or self.placement.has_moves

    def add(self, sequence: Sequence, now_s: float) -> None:
        """Queue a new sequence."""
        assert sequence.request.id not in self._sequences, f"request id {sequence.request.id} is in use"
        sequence.waiting_since_s = now_s
        self._sequences[sequence.request.id] = sequence
        self.placement.enqueue(sequence)

    def find(self, request_id: str) -> Sequence | None:
        """The sequence of a request that has not finished."""
        return self._sequences.get(request_id)

    def remove(self, sequence: Sequence, *, is_complete: bool = False) -> None:
        """Forget a sequence in any stage and free what it holds."""
        del self._sequences[sequence.request.id]
        self.placement.discard(sequence, is_complete=is_complete)

    def decoding(self) -> list[Sequence]:
        """Running sequences whose next step is a plain decode: those that drafts can be proposed for."""
        return [sequence for sequence in self.placement.by_age() if sequence.num_pending == 1]

    def plan(self, number: int, now_s: float, drafts: Drafts | None = None) -> Step | None:
        """The next step; None when there is nothing to do."""
        self.placement.admit(now_s)
        decodes = self._plan_decodes(drafts or {})
        rows = (*decodes, *self._plan_chunks(decodes))
        moves = self.placement.take_moves()
        if not rows and not moves:
            return None
        for row in rows:
            sequence = self._sequences[row.request_id]
            sequence.last_step = number
            if sequence.first_run_s is None:
                sequence.first_run_s = now_s
        return Step(number, moves, rows)

    def commit(self, step: Step, drawn: Values[tuple[Drawn, ...]], *, now_s: float, seconds: float) -> list[Advance]:
        """Take over a step that has run in `seconds`; `drawn` belongs to its rows with logits, in order.

        Finished sequences are removed. A sequence whose logits are no numbers is left for the caller to fail.
        """
        self.placement.reuse.step_ended(ok=True)
        remaining = iter(drawn)
        advances: list[Advance] = []
        for row in step.rows:
            sequence = self._sequences[row.request_id]
            # Drafts count as computed once they are accepted; what is stored beyond is overwritten.
            sequence.num_computed = row.end - len(row.drafts)
            sequence.seconds_unsaved += seconds * len(row.tokens) / step.num_tokens
            if row.num_logits:
                advances.append(self._advance(sequence, row, next(remaining), now_s))
            if sequence.slot is not None:
                self.placement.save(sequence)
        return advances

    def abandon(self, step: Step) -> list[Sequence]:
        """Give up a step that has failed. Returns the sequences it loses, which are removed."""
        self.placement.reuse.step_ended(ok=False)
        found = [self.find(request_id) for request_id in sorted(step.request_ids)]
        lost = [sequence for sequence in found if sequence is not None]
        for sequence in lost:
            self.remove(sequence)
        return lost

    def _advance(self, sequence: Sequence, row: Row, drawn: tuple[Drawn, ...], now_s: float) -> Advance:
        num_drafts = len(row.drafts)
        kept: list[Drawn] = []
        finish: FinishReason | None = None
        for one in drawn:
            kept.append(one)
            if one.token_id is None:
                return Advance(sequence, tuple(kept), num_drafts, FinishReason.ERROR)
            sequence.tokens.append(one.token_id)
            if sequence.history is not None:
                sequence.history.add(one.token_id)
            finish = sequence.finish_after(one.token_id)
            if finish is not None:
                break
        num_accepted = len(kept) - 1  # the last one was drawn, not guessed (or ends the request)
        sequence.num_computed += num_accepted
        sequence.num_accepted += num_accepted
        sequence.num_rejected += num_drafts - num_accepted
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        if finish is not None:
            self.remove(sequence, is_complete=True)
        return Advance(sequence, tuple(kept), num_drafts, finish)

    def _plan_decodes(self, drafts: Drafts) -> list[Row]:
        """A row for each running sequence with one token to compute; when memory runs out, the youngest gives way."""
        for sequence in self.placement.by_age():
            if sequence.stage is Stage.RUNNING and sequence.num_pending == 1:
                self.placement.grow(sequence)
        ready = self.decoding()
        if len(ready) > self._plan.max_logit_rows:
            ready.sort(key=lambda sequence: sequence.last_step)  # whoever has waited longest
            ready = ready[: self._plan.max_logit_rows]
        spare = self._plan.max_logit_rows - len(ready)
        rows: list[Row] = []
        for sequence in ready:
            guesses = self._fitting(sequence, drafts.get(sequence.request.id, ())[:spare])
            spare -= len(guesses)
            rows.append(self._verification(sequence, guesses) if guesses else self._row(sequence, 1))
        return rows

    def _fitting(self, sequence: Sequence, guesses: tuple[int, ...]) -> tuple[int, ...]:
        """Cut a draft to what the request may still generate and to memory that is free anyway."""
        room = sequence.max_tokens - sequence.num_output_tokens - 1
        guesses = guesses[: max(0, min(room, self._plan.max_chunk_tokens - 1))]
        while guesses and not self.placement.has_blocks(sequence, len(sequence.tokens) + len(guesses)):
            guesses = guesses[:-1]
        if guesses:
            self.placement.reserve(sequence, len(sequence.tokens) + len(guesses))
        return guesses

    def _verification(self, sequence: Sequence, guesses: tuple[int, ...]) -> Row:
        assert sequence.slot is not None
        tokens = (sequence.tokens[-1], *guesses)
        return Row(sequence.request.id, sequence.slot, sequence.num_computed, tokens, len(tokens))

    def _plan_chunks(self, decodes: list[Row]) -> Iterator[Row]:
        """Prompt chunks of the oldest sequences that have not computed theirs, within the step's time."""
        num_logits = sum(row.num_logits for row in decodes)
        decode_tokens = sum(len(row.tokens) for row in decodes)
        decode_attended = sum(len(row.tokens) * row.end for row in decodes)
        waiting = [sequence for sequence in self.placement.by_age() if sequence.num_pending > 1]
        if not waiting:
            return
        budget = self._pace.chunk_tokens(
            decode_tokens=decode_tokens, decode_attended=decode_attended, start=waiting[0].num_computed
        )
        for sequence in waiting:
            count = self._chunk_length(sequence, budget, is_first=sequence is waiting[0])
            if count <= 0:
                return
            row = self._row(sequence, count)
            if num_logits + row.num_logits > self._plan.max_logit_rows:
                continue
            num_logits += row.num_logits
            budget -= count
            yield row

    def _chunk_length(self, sequence: Sequence, budget: int, *, is_first: bool) -> int:
        if not self._plan.deterministic:
            return min(sequence.num_pending, budget)
        to_cut = EXACT_CUT - sequence.num_computed % EXACT_CUT
        exact = min(sequence.num_pending, to_cut, self._plan.max_chunk_tokens)
        return exact if is_first or exact <= budget else 0

    def _row(self, sequence: Sequence, count: int) -> Row:
        """The next `count` tokens; in deterministic mode a single one brings its predecessor along."""
        assert sequence.slot is not None
        start = sequence.num_computed
        end = start + count
        if self._plan.deterministic and count == 1 and start > 0:
            start -= 1
        tokens = tuple(sequence.tokens[start:end])
        return Row(sequence.request.id, sequence.slot, start, tokens, int(end == len(sequence.tokens)))
