"""Asks a drafter for guesses on a thread of its own, within a deadline. Knows no logits.

A drafter may be late, hang, raise or return nonsense: it costs time, but never a token. One that raises is not asked
any more; one that is always late is left alone, each time longer, since a machine may be busy for a while.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Values
from concurrent.futures import Future
from dataclasses import dataclass, replace
from time import monotonic

import structlog

from ortserve.plugins.drafting import Draft, Drafter, DraftRequest, Ended, SequenceView, Verified
from ortserve.runtime.sequence import Sequence
from ortserve.runtime.speculation.adaptation import DraftCost
from ortserve.runtime.speculation.stats import DraftStats

MAX_MISSES = 20  # deadlines missed in a row before a drafter is left alone for a while
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0  # each pause without a draft in between is twice as long
SHORTEST_WAIT_S = 0.002
WAIT_SHARE = 0.25  # of a step, whatever drafts have taken
WAIT_SLACK = 1.5  # times what drafts of the wanted length have taken: that they pay is decided already


@dataclass(frozen=True, slots=True)
class Verification:
    """What one step did to one sequence that drew tokens."""

    sequence: Sequence
    num_fed: int  # guesses
    num_accepted: int
    tokens: tuple[int, ...]  # added: the accepted guesses and one more
    seconds: float  # of the step, the share of the guesses


class Drafting:
    """One drafter of one engine. Called on the engine's thread."""

    def __init__(
        self,
        drafter: Drafter,
        *,
        vocab_size: int,
        clock: Callable[[], float] = monotonic,
        shortest_wait_s: float = SHORTEST_WAIT_S,
        name: str | None = None,
    ) -> None:
        """`name` is the operator's word for the drafter, in the log."""
        self._name = name or type(drafter).__name__
        self.stats = DraftStats()
        self.cost = DraftCost()
        self._spent_s = 0.0  # since it was last taken: what `cost` has learnt from, and what was waited in vain
        self._drafter = drafter
        self._vocab_size = vocab_size
        self._clock = clock
        self._shortest_wait_s = shortest_wait_s
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: Future[Values[Draft]] | None = None  # of a deadline that was missed
        self._answered_s = 0.0  # what the last answer took; written before it is handed over
        self._num_misses = 0
        self._has_complained = False
        self._pause_s = FIRST_PAUSE_S
        self._paused_until = -math.inf
        self._known: set[str] = set()
        self._drafts: dict[str, Draft] = {}  # of the step that runs, by request
        self._thread = threading.Thread(target=self._work, name="ortserve-drafter", daemon=True)
        self._thread.start()

    @property
    def is_on(self) -> bool:
        """It has not failed."""
        return self.stats.is_on

    @property
    def is_asked(self) -> bool:
        """It has not failed, and is not left alone for being late."""
        return self.is_on and self._clock() >= self._paused_until

    def begin(self, sequence: Sequence) -> None:
        """A request has come. The drafter reads its prompt while the engine computes it."""
        request = sequence.request
        if self.is_on and request.draft.max_draft != 0:
            self._known.add(request.id)
            started = DraftRequest(request.id, request.cache.salt, request.prompt, request.draft.prediction)
            self._tell(lambda: self._drafter.start(started))

    def propose(
        self,
        sequences: Values[Sequence],
        limits: Mapping[str, int],
        step_s: float,
        rooms: Mapping[str, int] | None = None,
    ) -> dict[str, Draft]:
        """Guesses for those of the decoding `sequences` that `limits` allows some; `step_s` is what a step takes.

        With `rooms` a draft with chances may be as long as they say; without it and without chances, as `limits` say.
        """
        self._drafts = {}
        rooms = rooms or {}
        wanted = [sequence for sequence in sequences if sequence.request.id in limits.keys() & self._known]
        if not self.is_asked or not wanted or (self._pending is not None and not self._pending.done()):
            return {}
        views = [_view(sequence, limits[sequence.request.id], rooms.get(sequence.request.id)) for sequence in wanted]
        self.stats.num_calls += 1
        begun = self._clock()
        longest = max(limits[sequence.request.id] for sequence in wanted)
        usual_s = WAIT_SLACK * self.cost.predict(longest) / 1000
        wait_s = max(self._shortest_wait_s, WAIT_SHARE * step_s, min(usual_s, step_s))
        self._pending = self._ask(lambda: self._drafter.propose(views, begun + wait_s))
        by_id = {sequence.request.id: sequence for sequence in wanted}
        try:
            drafts = self._checked(self._pending.result(wait_s), by_id, limits, rooms)
        except TimeoutError:
            self._spent_s += self._clock() - begun
            self._miss()
            return {}
        except (Exception, SystemExit) as error:  # a plugin may raise anything, or return what is no draft
            self._switch_off(f"its proposal failed with {type(error).__name__}: {error}")
            return {}
        finally:
            self.stats.drafting_s += self._clock() - begun
        self._num_misses = 0
        self._pause_s = FIRST_PAUSE_S
        # Not what was waited: the thread may have been busy with the prompts of new requests.
        # Guesses beyond what was asked for by length come free: their drafter has them in memory.
        longest = max((min(len(draft.tokens), limits[name]) for name, draft in drafts.items()), default=0)
        self._spent_s += self._answered_s
        self.cost.observe(longest, 1000 * self._answered_s)
        self._drafts = drafts
        return drafts

    def take_spent_s(self) -> float:
        """Seconds that proposals have taken since the last call, but for being handed over: no cost of the steps."""
        spent, self._spent_s = self._spent_s, 0.0
        return spent

    def chances(self, request_id: str) -> tuple[float, ...]:
        """How probably the guesses for a request in the step that runs were said to hold; none where nothing was."""
        draft = self._drafts.get(request_id)
        return () if draft is None else draft.chances

    def observe(self, results: Values[Verification]) -> None:
        """What one step did."""
        verified: list[Verified] = []
        for one in results:
            draft = self._drafts.get(one.sequence.request.id)
            if draft is None or one.num_fed == 0:
                continue
            verified.append(Verified(draft.id, draft.source, one.num_fed, one.num_accepted, one.tokens))
            self.stats.add(draft.source, one.num_fed, one.num_accepted, one.seconds)
        if verified and self.is_on:
            self._tell(lambda: self._drafter.observe(verified))

    def forget(self, sequence: Sequence) -> None:
        """A request has ended, with the tokens it has now."""
        if sequence.request.id in self._known:
            self._known.discard(sequence.request.id)
            if self.is_on:
                ended = Ended(sequence.request.id, tuple(sequence.tokens[sequence.num_prompt_tokens :]))
                self._tell(lambda: self._drafter.forget((ended,)))

    def close(self) -> None:
        """Stop the drafter; one that hangs is left behind."""
        self._tell(self._drafter.close)
        self._tasks.put(None)
        self._thread.join(1.0)

    def _checked(
        self,
        drafts: Values[Draft],
        sequences: Mapping[str, Sequence],
        limits: Mapping[str, int],
        rooms: Mapping[str, int],
    ) -> dict[str, Draft]:
        """Drop what is stale, unknown, too long, or no token of this model; chances that are none are dropped alone."""
        found: dict[str, Draft] = {}
        for draft in drafts:
            sequence = sequences.get(draft.id)
            if sequence is None or draft.length != len(sequence.tokens):
                continue
            chances = draft.chances if _are_chances(draft) else ()
            most = max(limits[draft.id], rooms.get(draft.id, 0)) if chances else limits[draft.id]
            tokens = draft.tokens[:most]
            if tokens and all(isinstance(token, int) and 0 <= token < self._vocab_size for token in tokens):
                found[draft.id] = replace(draft, tokens=tokens, chances=chances[:most])
            elif tokens:
                self._complain(tokens)
        return found

    def _complain(self, tokens: tuple[int, ...]) -> None:
        """Tell its author, once: what is dropped would not be missed."""
        if not self._has_complained:
            self._has_complained = True
            reason = f"{tokens[:8]!r}"[:200] + f" are not all ids of tokens, which are below {self._vocab_size}"
            log = structlog.get_logger("ortserve.drafter")
            log.warning("a draft is dropped", drafter=self._name, reason=reason)

    def _miss(self) -> None:
        self.stats.num_missed_deadlines += 1
        self._num_misses += 1
        if self._num_misses >= MAX_MISSES:
            structlog.get_logger("ortserve.drafter").warning(
                "the drafter is left alone for a while",
                drafter=self._name,
                reason=f"it missed {MAX_MISSES} deadlines in a row",
                seconds=self._pause_s,
            )
            self._num_misses = 0
            self._paused_until = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _switch_off(self, reason: str) -> None:
        if self.is_on:
            log = structlog.get_logger("ortserve.drafter")
            log.error("the drafter is switched off", drafter=self._name, reason=reason)
        self.stats.is_on = False

    def _ask(self, question: Callable[[], Values[Draft]]) -> Future[Values[Draft]]:
        future: Future[Values[Draft]] = Future()

        def run() -> None:
            begun = self._clock()
            try:
                drafts = question()
                self._answered_s = self._clock() - begun
                future.set_result(drafts)
            except BaseException as error:  # handed to whoever waits
                future.set_exception(error)

        self._tasks.put(run)
        return future

    def _tell(self, action: Callable[[], None]) -> None:
        def run() -> None:
            try:
                action()
            except (Exception, SystemExit) as error:  # a plugin may raise anything
                self._switch_off(f"it raised {type(error).__name__}: {error}")

        self._tasks.put(run)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


def _are_chances(draft: Draft) -> bool:
    """One number from 0 to 1 for each guess."""
    return len(draft.chances) == len(draft.tokens) and all(
        isinstance(chance, (int, float)) and 0 <= chance <= 1 for chance in draft.chances
    )


def _view(sequence: Sequence, limit: int, room: int | None) -> SequenceView:
    allowed = len if sequence.constraint is None else sequence.constraint.allowed_prefix
    return SequenceView(
        sequence.request.id,
        sequence.tokens,
        sequence.num_prompt_tokens,
        limit,
        allowed,
        sequence.next_draw(),
        sequence.num_prompt_tokens + sequence.max_tokens,
        room,
    )
