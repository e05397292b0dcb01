"""Decides what each step computes. The only writer of sequences and block pools; knows no tensors and draws nothing.

Planning moves sequences between stages (admission, preemption) and lists the bytes to move; committing a step that has
run moves its sequences forward. Where they wait and whom they displace is `placement`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Values
from dataclasses import dataclass, replace
from typing import TypeAlias

from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import FinishReason, TokenLogprobs
from ortserve.runtime.sampling.sampler import Drawn
from ortserve.runtime.scheduling.pace import Pace
from ortserve.runtime.scheduling.placement import Placement
from ortserve.runtime.scheduling.taking import open_reply, take_drawn, take_forced
from ortserve.runtime.sequence import Sequence, Stage
from ortserve.runtime.step import EXACT_CUT, Row, Step
from ortserve.runtime.verify import Picked

MAX_FORCED = 16  # tokens that a decode carries at the most: a step stays a step, and the rest comes in the next

Drafts: TypeAlias = Mapping[str, tuple[int, ...]]  # guesses by request id, each based on the tokens of now


@dataclass(frozen=True, slots=True)
class Advance:
    """What one committed step did to one sequence that had logits."""

    sequence: Sequence
    added: tuple[Drawn, ...]  # drawn or forced by its grammar, up to and including the one that ended it
    num_drafts: int  # guesses of a drafter
    num_accepted: int  # of them
    finish: FinishReason | None
    scored: tuple[TokenLogprobs, ...] = ()  # prompt tokens it judged


@dataclass(frozen=True, slots=True)
class First:
    """Whose prompt a step computes while others wait."""

    newcomer: Sequence
    others: frozenset[bytes]  # tenants whose sequences have no part in the step
    budget: int  # prompt tokens that take no longer than a step with prompt tokens and all decodes may


class Scheduler:
    """Larger priorities first, then tenants in turns, then age; decodes and prompt chunks share each step."""

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
        open_reply(sequence)
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
        """Running sequences whose next step is a decode: those that drafts can be proposed for."""
        return [sequence for sequence in self.placement.by_age() if sequence.is_decoding]

    def plan(self, number: int, now_s: float, drafts: Drafts | None = None) -> Step | None:
        """The next step; None when there is nothing to do."""
        self.placement.admit(now_s)
        first = self._find_first()
        decodes = self._plan_decodes(drafts or {}, first)
        rows = (*decodes, *self._plan_chunks(decodes, first))
        moves = self.placement.take_moves()
        if not rows and not moves:
            return None
        for row in rows:
            sequence = self._sequences[row.request_id]
            sequence.last_step = number
            if sequence.first_run_s is None:
                sequence.first_run_s = now_s
        return Step(number, moves, rows)

    def commit(self, step: Step, picked: Values[Picked], *, now_s: float, seconds: float) -> list[Advance]:
        """Take over a step that has run in `seconds`; `picked` belongs to its rows with logits, in order.

        Finished sequences are removed; rows of sequences that were removed while it ran come to nothing. A sequence
        whose logits are no numbers is left for the caller to fail.
        """
        self.placement.reuse.step_ended(ok=True)
        remaining = iter(picked)
        advances: list[Advance] = []
        token_s = seconds / max(step.num_tokens, 1)
        for row in step.rows:
            mine = next(remaining) if row.num_logits else None
            sequence = self._sequences.get(row.request_id)
            if sequence is None:
                continue
            if not row.num_silent:
                # Drafts count as computed once they are accepted; what is stored beyond is overwritten.
                sequence.num_computed = row.end - len(row.drafts)
            sequence.seconds_unsaved += token_s * len(row.tokens)
            self.placement.fair.charge(sequence.request, len(row.tokens))
            if mine is not None:
                advances.append(self._advance(sequence, row, mine, now_s))
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

    def _advance(self, sequence: Sequence, row: Row, picked: Picked, now_s: float) -> Advance:
        sequence.num_scored += row.num_scored
        scored = tuple(entry for entry in picked.scored if entry is not None)
        if len(scored) < len(picked.scored):
            return Advance(sequence, (), 0, 0, FinishReason.ERROR)
        if not row.num_drawn:
            return Advance(sequence, (), 0, 0, None, scored)
        if sequence.max_tokens == 0:
            self.remove(sequence, is_complete=True)
            return Advance(sequence, (), 0, 0, FinishReason.LENGTH, scored)
        num_drafts = 0 if sequence.forced else len(row.drafts)  # what had to come was no guess
        added: list[Drawn] = []
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
            added += map(Drawn, sequence.tokens[sequence.num_prompt_tokens :])  # forced before anything was drawn
        finish, num_taken = take_drawn(sequence, picked.drawn, added)
        # The last one was drawn, not guessed (or ends the request).
        sequence.num_computed += max(num_taken - 1, 0)
        num_accepted = min(num_taken - 1, num_drafts)
        sequence.num_accepted += num_accepted
        sequence.num_rejected += num_drafts - num_accepted
        if finish is None:
            finish = take_forced(sequence, added, num_taken)
        if finish in (FinishReason.STOP, FinishReason.LENGTH):
            self.remove(sequence, is_complete=True)
        return Advance(sequence, tuple(added), num_drafts, num_accepted, finish, scored)

    def _find_first(self) -> First | None:
        """A newcomer whose prompt is computed before tenants that hold more go on: beside them it would take longer.

        Its prompt must fit a step without them, and that step the bound of one with them: they wait no longer than
        for any prompt.
        """
        running = self.placement.by_age()
        decoding = [sequence for sequence in running if sequence.is_decoding]
        if not decoding or len(decoding) == len(running):
            return None
        for newcomer in running:
            if newcomer.is_decoding or newcomer.is_scoring:
                continue
            tenants = self.placement.fair.making_way(newcomer, running)
            if not tenants:
                continue
            tokens, attended = self._decode_load(decoding)
            held = self._decode_load(sequence for sequence in decoding if sequence.request.tenant in tenants)
            budget = self._pace.chunk_tokens(
                decode_tokens=tokens,
                decode_attended=attended,
                start=newcomer.num_computed,
                held_tokens=held[0],
                held_attended=held[1],
            )
            if self._chunk_length(newcomer, budget, is_first=True) == newcomer.num_pending <= budget:
                return First(newcomer, frozenset(tenants), budget)
        return None

    def _decode_load(self, decoding: Iterable[Sequence]) -> tuple[int, int]:
        """Tokens that their next decodes feed, and query-key pairs."""
        lengths = [(self._decode_length(sequence), sequence.num_computed) for sequence in decoding]
        return sum(length for length, _ in lengths), sum(length * (start + length) for length, start in lengths)

    def _plan_decodes(self, drafts: Drafts, first: First | None) -> list[Row]:
        """A row for each running sequence with one token to compute; when memory runs out, the youngest gives way."""
        others = frozenset() if first is None else first.others
        for sequence in self.placement.by_age():
            is_next = sequence.is_decoding and sequence.request.tenant not in others
            if sequence.stage is Stage.RUNNING and is_next:
                self.placement.grow(sequence, sequence.num_computed + self._decode_length(sequence))
        ready = [sequence for sequence in self.decoding() if sequence.request.tenant not in others]
        if len(ready) > self._plan.max_logit_rows:
            ready.sort(key=lambda sequence: sequence.last_step)  # whoever has waited longest
            ready = ready[: self._plan.max_logit_rows]
        spare = self._plan.max_logit_rows - len(ready)
        if any(sequence.is_scoring for sequence in self.placement.by_age()):
            spare = 0  # guesses would take the rows that a prompt is judged with
        rows: list[Row] = []
        for sequence in ready:
            count = self._decode_length(sequence)
            guesses = sequence.forced or drafts.get(sequence.request.id, ())
            guesses = self._fitting(sequence, guesses[:spare]) if count == sequence.num_pending else ()
            spare -= len(guesses)
            rows.append(self._verification(sequence, guesses) if guesses else self._row(sequence, count))
        return rows

    def _decode_length(self, sequence: Sequence) -> int:
        """Tokens a decoding sequence feeds: more than one only where its grammar has forced some."""
        return min(sequence.num_pending, MAX_FORCED, self._plan.max_chunk_tokens)

    def _fitting(self, sequence: Sequence, guesses: tuple[int, ...]) -> tuple[int, ...]:
        """Cut a draft to what the request may still say, by number and grammar, and to memory that is free anyway."""
        room = sequence.max_tokens - sequence.num_output_tokens - 1
        guesses = guesses[: max(0, min(room, self._plan.max_chunk_tokens - sequence.num_pending))]
        if guesses and sequence.constraint is not None:
            guesses = guesses[: sequence.constraint.allowed_prefix(guesses)]
        while guesses and not self.placement.has_blocks(sequence, len(sequence.tokens) + len(guesses)):
            guesses = guesses[:-1]
        if guesses:
            self.placement.reserve(sequence, len(sequence.tokens) + len(guesses))
        return guesses

    def _verification(self, sequence: Sequence, guesses: tuple[int, ...]) -> Row:
        assert sequence.slot is not None
        tokens = (*sequence.tokens[sequence.num_computed :], *guesses)
        blocks = self._blocks(sequence)
        return Row(
            sequence.request.id,
            sequence.slot,
            sequence.num_computed,
            tokens,
            len(guesses) + 1,
            blocks=blocks,
            first_rotary_row=sequence.regime.first_row,
        )

    def _plan_chunks(self, decodes: list[Row], first: First | None) -> Iterator[Row]:
        """Prompt chunks of the oldest sequences that have not computed theirs, within the step's time."""
        num_logits = sum(row.num_logits for row in decodes)
        decode_tokens = sum(len(row.tokens) for row in decodes)
        decode_attended = sum(len(row.tokens) * row.end for row in decodes)
        waiting = [sequence for sequence in self.placement.by_age() if not sequence.is_decoding]
        if not waiting:
            return
        if first is not None and first.newcomer in waiting:  # its row may have been taken for memory meanwhile
            waiting, budget = [first.newcomer], first.budget
        else:
            budget = self._pace.chunk_tokens(
                decode_tokens=decode_tokens, decode_attended=decode_attended, start=waiting[0].num_computed
            )
        for sequence in waiting:
            count = self._chunk_length(sequence, budget, is_first=sequence is waiting[0])
            if count <= 0:
                return
            row = self._chunk(sequence, count, self._plan.max_logit_rows - num_logits)
            if row is None:
                continue
            num_logits += row.num_logits
            budget -= count
            yield row

    def _chunk(self, sequence: Sequence, count: int, num_spare: int) -> Row | None:
        """The next `count` tokens of a prompt, with logits where they are judged; None when those do not fit.

        What exceeds the spare logits rows comes in the next step. In deterministic mode chunks are not cut for that:
        the same chunk is fed again, with logits at its next positions.
        """
        if not sequence.is_scoring:
            row = self._row(sequence, count)
            return row if row.num_logits <= num_spare else None
        begin = max(sequence.num_scored, sequence.num_computed)  # of the positions with logits
        num_silent = max(0, sequence.num_computed + count - begin - num_spare)
        if num_spare == 0 and num_silent:
            return None
        if not self._plan.deterministic:
            count, num_silent = count - num_silent, 0
        end = sequence.num_computed + count - num_silent
        num_scored = max(0, min(end, sequence.num_prompt_tokens - 1) - begin)
        row = self._row(sequence, count)
        return replace(row, num_logits=max(0, end - begin), num_scored=num_scored, num_silent=num_silent)

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
        is_last = end == len(sequence.tokens)
        return Row(
            sequence.request.id,
            sequence.slot,
            start,
            tokens,
            int(is_last),
            blocks=self._blocks(sequence),
            first_rotary_row=sequence.regime.first_row,
        )

    def _blocks(self, sequence: Sequence) -> tuple[int, ...]:
        """Where its tokens lie; in layout "slots" its row says that."""
        return tuple(sequence.blocks) if self._plan.shares_blocks else ()
