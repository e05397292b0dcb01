"""Whether asking a drafter pays, by the clock: steps with it against steps without, by how many rows decode together.

A formula knows what a guess should cost. What asking does cost (waiting in vain, an interpreter and cores that the
drafter takes from the engine) shows only in the time between tokens. So tokens per second are compared, both in units
of what the pace says of a step without guesses: then numbers of rows, contexts and a busy machine weigh on both alike.
A drafter that costs more than it brings rests, longer after each trial in vain. Knows no drafter, no guess, no clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LEAST_GAIN = 0.93  # tokens per second of plain; below, the drafter rests. One that brings nothing yet learns meanwhile
CLEAR_GAIN = 1.03  # above, the next rest gets shorter again
TRIAL = 24  # steps after which a verdict is due
_JUDGE_EVERY = 8  # steps: asked at each, chance would answer no too often
_EARLY_GAINS = (0.5, 0.65)  # of a trial's first eight steps and the next: what is slower need not be tried to the end
FIRST_REST, LONGEST_REST, LONGEST_REST_S = 32, 1024, 10.0  # steps, and seconds: the work may be another by then
SCOUT_EVERY = 64  # steps of a rest: then one asks, and where clearly more guesses hold than before, the rest is over
_BETTER = 1.5  # times the tokens per row
_LONGER = 4  # times the rest before, after a trial in vain
PROBE = 2  # steps without asking, now and then, to compare with
_PROBE_EVERY, _PROBE_SHARE = 48, 0.01  # steps at least, and what probing may cost of what is gained
_KEEP = 0.98  # weight of what was seen before, per step
_PRIOR = 2.0  # steps without asking that took what the pace says
_TRIAL_PROBE = 4  # the same within a trial, behind each _JUDGE_EVERY steps: load changes within seconds
_OLD = 8.0  # steps that what was seen before a trial counts for in it


@dataclass(slots=True)
class _Speed:
    """Plain steps' worth of tokens, and plain steps' worth of time, of the last steps."""

    gained: float = 0.0
    taken: float = 0.0
    count: float = 0.0

    def add(self, gained: float, taken: float) -> None:
        self.count = _KEEP * self.count + 1
        self.gained = _KEEP * self.gained + gained
        self.taken = _KEEP * self.taken + taken

    def age(self) -> None:
        """Count for few steps."""
        share = min(1.0, _OLD / self.gained)
        self.gained, self.taken = share * self.gained, share * self.taken


@dataclass(slots=True)
class _Case:
    """Some numbers of rows."""

    asking: _Speed = field(default_factory=_Speed)
    plain: _Speed = field(default_factory=lambda: _Speed(_PRIOR, _PRIOR))
    num_asking: int = 0  # steps since the last rest
    num_unprobed: int = 0
    num_plain: int = 0  # steps to come without asking: a rest, or a probe
    is_resting: bool = False
    is_deaf: bool = False  # rests as long as it may
    rests_until_s: float = math.inf
    next_rest: int = FIRST_REST
    num_unscouted: int = 0
    held: float = 1.0  # tokens per row and step with the drafter when it was sent to rest

    @property
    def gain(self) -> float:
        """Tokens per second of plain."""
        if not self.asking.taken:
            return 1.0
        return self.asking.gained / self.asking.taken * self.plain.taken / self.plain.gained

    def rest(self, now_s: float) -> None:
        self.is_resting, self.rests_until_s = True, now_s + LONGEST_REST_S
        self.num_unscouted, self.held = 0, self.asking.gained / self.asking.count
        self.num_plain, self.is_deaf = self.next_rest, self.next_rest == LONGEST_REST
        self.next_rest = min(_LONGER * self.next_rest, LONGEST_REST)

    def resume(self) -> None:
        """Try again: what was seen before the rest counts no more."""
        self.is_resting = self.is_deaf = False
        self.num_plain, self.num_asking, self.num_unprobed = 0, 0, 0
        self.asking = _Speed()
        self.plain.age()


class Payoff:
    """Decides before each step, learns behind it."""

    def __init__(self) -> None:
        self._cases: dict[int, _Case] = {}
        self._asks: _Case | None = None  # of the step that runs
        self._last: _Case | None = None

    @property
    def is_resting(self) -> bool:
        """With as many rows as decoded last, the drafter is not asked for a while."""
        return self._last is not None and self._last.is_resting

    @property
    def is_deaf(self) -> bool:
        """The same after several trials in vain: it need not even hear of new requests."""
        return self._last is not None and self._last.is_deaf

    def pays(self, num_rows: int, now_s: float) -> bool:
        """Whether a step with so many decoding rows is to ask, as far as the clock has told."""
        case = self._last = self._case(num_rows)
        if case.is_resting and (case.num_plain <= 0 or now_s >= case.rests_until_s):
            case.resume()
        return case.num_plain <= 0 or (case.is_resting and case.num_unscouted >= SCOUT_EVERY)

    def ask(self, num_rows: int) -> None:
        """The step that comes is made with the drafter."""
        self._asks = self._case(num_rows)

    def drop(self) -> None:
        """The step that ran tells nothing: prompts were in it, it failed, or the pace is not known yet."""
        self._asks = None

    def observe(self, num_rows: int, num_tokens: int, seconds: float, plain_s: float, now_s: float) -> None:
        """A step in which nothing but `num_rows` decoding rows ran gave them `num_tokens`, in `seconds` in all.

        `plain_s`: what it would take without guesses, by the pace.
        """
        asked, self._asks = self._asks, None
        if plain_s <= 0 or seconds <= 0:  # a clock may stand still
            return
        taken = seconds / plain_s
        if asked is None:
            case = self._case(num_rows)
            case.plain.add(1.0, taken)
            case.num_plain = max(0, case.num_plain - 1)
            case.num_unscouted += 1
            return
        if asked.is_resting:
            asked.num_unscouted = 0
            if num_tokens / num_rows > _BETTER * asked.held:
                asked.resume()
            return
        asked.asking.add(num_tokens / num_rows, taken)
        asked.num_asking += 1
        asked.num_unprobed += 1
        self._judge(asked, now_s)

    def _judge(self, case: _Case, now_s: float) -> None:
        if case.num_asking % _JUDGE_EVERY:
            return
        gain, is_trial = case.gain, case.num_asking < TRIAL
        if gain < (_EARLY_GAINS[case.num_asking // _JUDGE_EVERY - 1] if is_trial else LEAST_GAIN):
            case.rest(now_s)
            return
        if gain >= CLEAR_GAIN and case.num_asking % TRIAL == 0:
            case.next_rest = max(FIRST_REST, case.next_rest // _LONGER)
        if is_trial:
            case.num_plain = _TRIAL_PROBE
        elif case.num_unprobed >= max(_PROBE_EVERY, PROBE * (gain - 1) / _PROBE_SHARE):
            case.num_unprobed, case.num_plain = 0, PROBE

    def _case(self, num_rows: int) -> _Case:
        """Twice as many rows are another case."""
        return self._cases.setdefault(num_rows.bit_length(), _Case())
