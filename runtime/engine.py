"""One model serving many requests: plan, run, pick, commit. Synchronous; knows no threads (`driver` gives it one).

An exception before the commit abandons the step: its requests fail, all others go on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Protocol

import structlog

from ortserve.plugins.none import NoCache
from ortserve.runtime.grammar.constraint import Constraint, Grammars, NoGrammars
from ortserve.runtime.grammar.masking import Masking, Masks
from ortserve.runtime.host.bell import Bell
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Delta, FinishReason, Request
from ortserve.runtime.scheduling.admission import new_sequence
from ortserve.runtime.scheduling.backlog import Progress, RunningState
from ortserve.runtime.scheduling.foresight import Foreseen, Foresight, Launched, PreparingRunner
from ortserve.runtime.scheduling.pace import Costs, Pace
from ortserve.runtime.scheduling.placement import Placement
from ortserve.runtime.scheduling.reuse import Reuse, new_reuse
from ortserve.runtime.scheduling.scheduler import Advance, Drafts, Scheduler
from ortserve.runtime.scheduling.usage import usage_of
from ortserve.runtime.sequence import Sequence
from ortserve.runtime.speculation.adaptation import heard, learn, leave_alone, limits, rooms, worthwhile
from ortserve.runtime.speculation.drafting import Drafting, Verification
from ortserve.runtime.step import Step
from ortserve.runtime.verify import Picking, TokenSampler, draw_rows

COSTS_EVERY = 32  # steps: fitting what tokens cost takes as long as a small model's step does beside it


@dataclass(slots=True)
class EngineStats:
    """Counters since the start, and states at the time of asking."""

    num_running: int = 0
    num_waiting: int = 0
    num_swapped: int = 0
    num_free_blocks: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    num_failed_steps: int = 0
    num_fed_rows: int = 0  # by num_steps: how many sequences share a step
    num_fed_tokens: int = 0  # prompts, outputs and whatever was computed again
    num_output_tokens: int = 0
    num_finished: int = 0


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that its device computes, or has computed."""

    step: Step
    begun_s: float
    picking: Picking
    is_usual: bool  # what it takes says what its like will take


class StepRunner(Protocol):
    """Runs steps on its device."""

    def run(self, step: Step) -> Any:
        """Logits that its device's sampler understands; they may still be on their way."""


class Engine:
    """Requests in, deltas out. Not thread-safe."""

    def __init__(
        self,
        manifest: Manifest,
        plan: EnginePlan,
        runner: StepRunner,
        sampler: TokenSampler,
        *,
        reuse: Reuse | None = None,
        bell: Bell | None = None,
        drafting: Drafting | None = None,
        grammars: Grammars | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Without `reuse` nothing is cached, without `drafting` nothing is guessed, without `grammars` none can be
        asked for; `bell` rings for the cache.
        """
        self._manifest = manifest
        self._plan = plan
        self._runner = runner
        self._sampler = sampler
        self._clock = clock
        self._preparing = runner if isinstance(runner, PreparingRunner) else None
        short = None if self._preparing is None else self._preparing.longest_short
        self._pace = Pace(max_step_ms=plan.max_step_ms, max_chunk_tokens=plan.max_chunk_tokens, longest_short=short)
        self.bell = bell or Bell()
        self.reuse = reuse or new_reuse(plan, NoCache)
        self.scheduler = Scheduler(plan, self._pace, Placement(plan, self.reuse))
        self.drafting = drafting
        self.grammars = grammars or NoGrammars("its engine was made without")
        self._masking = Masking(self.grammars)
        self._foresight = None if self._preparing is None else Foresight(self.scheduler, self._preparing)
        self._flight: Flight | None = None  # launched by the step before
        self._tail_s = 0.0  # what the step before has done once its device was ready
        self.is_stalled = False  # there is work, and all of it waits for the prompt cache
        self._num_arrivals = 0
        self._costs: Costs | None = None
        self._stats = EngineStats()
        self._log = structlog.get_logger("ortserve.engine")

    @property
    def has_work(self) -> bool:
        """`step` would do something."""
        return self.scheduler.has_work or self._flight is not None

    def add(self, request: Request, constraint: Constraint | None = None) -> None:
        """Queue a request that `admission.check_request` has passed, with a fresh constraint of its grammar.

        Without one the grammar is compiled here, which may take long. Raises `RequestError` for one that cannot be.
        """
        now = self._clock()
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        if request.grammar is not None and constraint is None:
            constraint = self.grammars.compile(request.grammar)
        sequence = new_sequence(
            request,
            self._manifest,
            self._plan,
            seed=seed,
            arrival=self._num_arrivals,
            now_s=now,
            constraint=constraint,
        )
        self.scheduler.add(sequence, now)
        self._num_arrivals += 1
        if self.drafting is not None:
            self.drafting.begin(sequence)

    def cancel(self, request_id: str) -> Delta | None:
        """End a request now; None when it has already finished."""
        sequence = self.scheduler.find(request_id)
        if sequence is None:
            return None
        if self._flight is not None:
            self._flight.picking.wait()  # the device may be writing into the blocks that are about to be free
        return self._end(sequence, FinishReason.CANCELLED)

    def step(self) -> list[Delta]:
        """Run one step and return what it added to each request, in no particular order.

        On a device the one after it may have been launched before this returns.
        """
        flight, self._flight = self._flight, None
        if flight is None:
            begun = self._clock() - self._tail_s
            step = self.scheduler.plan(self._stats.num_steps, self._clock(), self._propose())
            self.is_stalled = step is None
            if step is None:
                return []
            try:
                flight = self._take_off(step, begun + (self.drafting.take_spent_s() if self.drafting else 0.0))
            except Exception as error:  # whatever the kernels or the memory raise: nothing is committed yet
                return self._abandon(step, error)
        return self._land(flight)

    def _take_off(self, step: Step, begun_s: float) -> Flight:
        """Run a planned step, or have its device begin with it."""
        masks = self._masking.begin(self._constrained(step))
        try:
            logits = self._runner.run(step)
        finally:
            masks.exception()  # whatever happens, the constraints are left alone before anybody touches them
        return self._flight_of(step, begun_s, self._draw(step, logits, masks.result()))

    def _flight_of(self, step: Step, begun_s: float, picking: Picking) -> Flight:
        return Flight(step, begun_s, picking, self._preparing is None or not self._preparing.was_unusual)

    def _land(self, flight: Flight) -> list[Delta]:
        """Wait for a step, launch the next one where that is known, and take over what this one has drawn."""
        step = flight.step
        try:
            foreseen = self._foresee(step, flight.picking.address)
            picked = flight.picking.result()
        except Exception as error:  # of the sampler too
            return self._abandon(step, error)
        now = self._clock()  # only now: logits may have been on their way until a token was drawn
        launched = None if foreseen is None or self._foresight is None else self._foresight.launch(foreseen, picked)
        # Rows that are scored cost time of their own.
        if flight.is_usual and step.rows and not any(row.num_scored for row in step.rows):
            self._pace.observe(step.num_tokens, step.num_attended, 1000 * (now - flight.begun_s), longest=step.longest)
        advances = self.scheduler.commit(step, picked, now_s=now, seconds=now - flight.begun_s)
        self._stats.num_steps += 1
        self._stats.num_fed_rows += len(step.rows)
        self._stats.num_fed_tokens += step.num_tokens
        self._stats.num_output_tokens += sum(len(advance.added) for advance in advances)
        lost = [] if launched is None else self._follow(launched, now)
        self._learn(advances, (now - flight.begun_s) / max(step.num_tokens, 1))
        deltas = [self._delta(advance, now) for advance in advances] + lost
        self._tail_s = self._clock() - now
        return deltas

    def close(self) -> None:
        """Let the prompt cache finish writing, and stop the drafter."""
        if self._flight is not None:
            self._flight.picking.wait()
        self.reuse.close()
        self._masking.close()
        if self.drafting is not None:
            self.drafting.close()

    def stats(self) -> EngineStats:
        """A copy that stays as it is."""
        placement = self.scheduler.placement
        return replace(
            self._stats,
            num_running=len(placement.running),
            num_waiting=placement.num_queued - placement.num_swapped,
            num_swapped=placement.num_swapped,
            num_free_blocks=placement.blocks.num_free,
            num_preemptions=placement.num_preemptions,
        )

    def progress(self) -> Progress:
        """What estimates of waiting rest on, as of now."""
        placement = self.scheduler.placement
        running = placement.running
        if running and (self._costs is None or self._stats.num_steps % COSTS_EVERY == 0):
            depth = sum(len(sequence.tokens) for sequence in running) // len(running)
            self._costs = self._pace.costs(self._plan.num_rows, depth)
        states = {
            sequence.request.id: RunningState(sequence.num_pending, sequence.num_output_tokens) for sequence in running
        }
        return Progress(states, placement.num_queued > 0, placement.fair.copy(), self._costs)

    def _propose(self) -> Drafts:
        if self.drafting is None or not self.drafting.is_asked:
            return {}
        decoding = self.scheduler.decoding()
        allowed = limits(decoding, self._pace, self.drafting.cost, max_logits=self._plan.max_logit_rows)
        if not allowed:
            leave_alone(decoding, self.drafting.cost)
            return {}
        predicted = self._pace.predict(len(decoding), sum(len(sequence.tokens) for sequence in decoding))
        drafts = self.drafting.propose(decoding, allowed, (predicted or 0.0) / 1000, rooms(decoding, allowed))
        for sequence in decoding:
            name = sequence.request.id
            heard(sequence, was_asked=name in allowed, has_draft=name in drafts)
        return worthwhile(drafts, allowed, decoding, self._pace, max_logits=self._plan.max_logit_rows)

    def _learn(self, advances: list[Advance], token_s: float) -> None:
        """`token_s`: seconds of the step per token fed."""
        if self.drafting is None:
            return
        results = []
        for advance in advances:
            if not advance.added:
                continue
            chances = self.drafting.chances(advance.sequence.request.id)
            learn(advance.sequence, advance.num_drafts, advance.num_accepted, chances)
            tokens = tuple(one.token_id for one in advance.added if one.token_id is not None)
            seconds = token_s * advance.num_drafts
            results.append(Verification(advance.sequence, advance.num_drafts, advance.num_accepted, tokens, seconds))
        self.drafting.observe(results)

    def _constrained(self, step: Step) -> list[tuple[str, Constraint, tuple[int, ...]]]:
        """The rows of requests with a grammar that draw in this step."""
        found = [(row, self.scheduler.find(row.request_id)) for row in step.rows if row.num_drawn]
        return [
            (row.request_id, sequence.constraint, row.drafts)
            for row, sequence in found
            if sequence is not None and sequence.constraint is not None
        ]

    def _draw(self, step: Step, logits: Any, masks: Masks) -> Picking:
        rows = [(row, self.scheduler.find(row.request_id)) for row in step.rows if row.num_logits]
        return draw_rows(self._sampler, rows, logits, masks)

    def _foresee(self, step: Step, tokens: int | None) -> Foreseen | None:
        if self._foresight is None or step.longest > 1:
            return None  # nothing is known of what follows
        asked = self.drafting if self.drafting is not None and self.drafting.is_asked else None
        decoding = [] if asked is None else self.scheduler.decoding()
        if asked and limits(decoding, self._pace, asked.cost, max_logits=self._plan.max_logit_rows):
            return None  # guesses come with a plan
        foreseen = self._foresight.look(step, tokens)
        if asked is not None and foreseen is not None:
            leave_alone(decoding, asked.cost)
        return foreseen

    def _follow(self, launched: Launched, now_s: float) -> list[Delta]:
        """The step that was launched early is on its way: draw it behind its model. Returns what it has lost."""
        if launched.failure is not None:
            return self._abandon(launched.step, launched.failure)
        try:
            self._flight = self._flight_of(launched.step, now_s, self._draw(launched.step, launched.logits, {}))
        except Exception as error:
            return self._abandon(launched.step, error)
        return []

    def _abandon(self, step: Step, error: Exception) -> list[Delta]:
        self._log.error("step failed", step=step.number, requests=sorted(step.request_ids), exc_info=error)
        self._stats = replace(self._stats, num_steps=step.number + 1, num_failed_steps=self._stats.num_failed_steps + 1)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return [self._last_delta(sequence, FinishReason.ERROR, reason) for sequence in self.scheduler.abandon(step)]

    def _delta(self, advance: Advance, now_s: float) -> Delta:
        sequence, finish = advance.sequence, advance.finish
        if finish is FinishReason.ERROR:
            return self._end(sequence, finish, _reason(sequence))
        if finish is not None:
            self._stats.num_finished += 1
            self._forget(sequence)
        shown = advance.added
        if finish is FinishReason.STOP and sequence.is_end(sequence.tokens[-1]):
            shown = shown[:-1]
        return Delta(
            request_id=sequence.request.id,
            token_ids=tuple(one.token_id for one in shown if one.token_id is not None),
            logprobs=tuple(one.logprobs for one in shown if one.logprobs is not None),
            finish=finish,
            usage=None if finish is None else usage_of(sequence, now_s),
            prompt_logprobs=advance.scored,
        )

    def _end(self, sequence: Sequence, finish: FinishReason, error: str | None = None) -> Delta:
        # What a cancelled request has computed is as good as any: replies cut at a stop string end this way.
        self.scheduler.remove(sequence, is_complete=finish is FinishReason.CANCELLED)
        return self._last_delta(sequence, finish, error)

    def _last_delta(self, sequence: Sequence, finish: FinishReason, error: str | None) -> Delta:
        self._stats.num_finished += 1
        self._forget(sequence)
        return Delta(sequence.request.id, (), finish=finish, usage=usage_of(sequence, self._clock()), error=error)

    def _forget(self, sequence: Sequence) -> None:
        if self.drafting is not None:
            self.drafting.forget(sequence)


def _reason(sequence: Sequence) -> str:
    """Why a sequence failed though its step ran."""
    failure = None if sequence.constraint is None else sequence.constraint.failure
    if failure is not None:
        return f"the grammar cannot be followed any further ({failure})"
    return "the model's logits are not finite numbers"
