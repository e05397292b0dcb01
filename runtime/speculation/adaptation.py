"""How many guesses a sequence may be given: as many as pay, by measured acceptance and measured cost. Knows no drafter.

The j-th guess of a sequence is worth the probability that it and all before it are accepted. It costs what one more
token adds to the step and, where it makes the longest draft longer, what the drafter needs for one more; the first of a
step costs besides what such a step takes longer than a plain one. Of all sequences' guesses, the most probable ones are
taken as long as they raise the tokens per time of the step.

A drafter that says how probably each of its guesses holds is asked for as many as there may be, and those that pay are
taken then. What it says is believed as far as its promises to a sequence have been kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Values

from ortserve.plugins.drafting import Draft
from ortserve.runtime.scheduling.pace import Pace
from ortserve.runtime.sequence import Sequence

PRIOR = 0.7  # acceptance of a sequence nobody has drafted for
MAX_DRAFT = 16
UNBOUNDED = sys.maxsize
_LEARN = 0.2  # weight of the newest verification
_FORGET = 0.01  # per undrafted step, back towards the prior: what did not pay is tried again
_COVER = 0.1  # weight of the newest answer, or silence, of the drafter
_FADE = 0.02  # of the cost of drafting, per step that is not drafted for
_LEAST_FORGET = 1e-4  # each try in vain doubles the time to the next
_FIRST_TRIES = 4  # guesses while the cost of a step is not known yet
# What a guess with chances counts for beside a token drawn. Rows that end together are as slow as the slowest of them,
# which the others' guesses do not help: on text that nothing predicts this makes 1.00 of plain out of 0.98.
_CAUTION = 0.7
_TRUST_WEIGHT = 4.0  # guesses that a drafter is believed without proof
_TRUST_DECAY = 0.9  # per verification, of what was promised and kept


class DraftCost:
    """What drafting takes: a call, and each guess of the longest draft. Of drafts in memory, next to nothing."""

    __slots__ = ("_guess_ms",)

    def __init__(self) -> None:
        self._guess_ms: float | None = None

    def observe(self, longest: int, milliseconds: float) -> None:
        """A call returned drafts of up to `longest` guesses."""
        taken = milliseconds / (longest + 1)
        self._guess_ms = taken if self._guess_ms is None else self._guess_ms + _LEARN * (taken - self._guess_ms)

    def fade(self) -> None:
        """A step went without a call: what seemed too dear then is tried again."""
        if self._guess_ms is not None:
            self._guess_ms *= 1 - _FADE

    def predict(self, longest: int) -> float:
        """Milliseconds of a call; nothing while none was seen."""
        return 0.0 if self._guess_ms is None else self._guess_ms * (longest + 1)


def limits(
    sequences: Values[Sequence], pace: Pace, drafting: DraftCost, *, max_logits: int = UNBOUNDED
) -> dict[str, int]:
    """Guesses allowed for each of the decoding `sequences`; those that get none are left out.

    A step has `max_logits` at most, one for each sequence and each guess.
    """
    if not sequences:
        return {}
    room = max(0, max_logits - len(sequences))
    base, entry, costs = _costs(sequences, pace)
    most = [_most(sequence) for sequence in sequences]
    if base is None:
        counts = [min(one, _FIRST_TRIES, room // len(sequences)) for one in most]
    else:
        terms = [(cost, sequence.coverage) for cost, sequence in zip(costs, sequences, strict=True)]
        counts = _best(list(_guesses(sequences, most)), terms, base, entry, drafting, room=room)
    return {sequence.request.id: count for sequence, count in zip(sequences, counts, strict=True) if count}


def rooms(sequences: Values[Sequence], limits: Mapping[str, int]) -> dict[str, int]:
    """Guesses welcome for each of the sequences in `limits` from a drafter that says how probably they hold."""
    return {sequence.request.id: _most(sequence) for sequence in sequences if sequence.request.id in limits}


def worthwhile(
    drafts: Mapping[str, Draft],
    limits: Mapping[str, int],
    sequences: Values[Sequence],
    pace: Pace,
    *,
    max_logits: int = UNBOUNDED,
) -> dict[str, tuple[int, ...]]:
    """The guesses that pay, by id: of drafts with chances those that raise the tokens per time, of others as allowed.

    `sequences` are all that decode: the drafted ones share the step with the others.
    """
    room = max(0, max_logits - len(sequences))
    base, entry, costs = _costs(sequences, pace)
    if base is None or not any(draft.chances for draft in drafts.values()):
        return {name: draft.tokens[: limits[name]] for name, draft in drafts.items()}
    found: list[tuple[float, int, int]] = []
    for number, sequence in enumerate(sequences):
        draft = drafts.get(sequence.request.id)
        if draft is not None:
            found += _judged(sequence, draft, limits[sequence.request.id], number)
    # That the drafter was asked is paid already.
    counts = _best(found, [(cost, 1.0) for cost in costs], base, entry, DraftCost(), weight=_CAUTION, room=room)
    return {
        sequence.request.id: drafts[sequence.request.id].tokens[:count]
        for sequence, count in zip(sequences, counts, strict=True)
        if count
    }


def trust(sequence: Sequence) -> float:
    """Share of a drafter's promises to a sequence that have been kept, at most 1."""
    return min(1.0, (sequence.kept + _TRUST_WEIGHT) / (sequence.promised + _TRUST_WEIGHT))


def expected(sequence: Sequence) -> float:
    """Probability that the next guess for a sequence is accepted."""
    return sequence.acceptance if sequence.num_accepted + sequence.num_rejected else PRIOR


def learn(sequence: Sequence, num_drafts: int, num_accepted: int, chances: Values[float] = ()) -> None:
    """Take a verification into account, or (without drafts) let an old verdict fade. `chances`: what was promised."""
    if num_drafts == 0:
        if sequence.num_accepted + sequence.num_rejected:
            sequence.acceptance += sequence.hope * (PRIOR - sequence.acceptance)
        return
    # Guesses after the first wrong one were not tried: they say nothing.
    tried = min(num_accepted + 1, num_drafts)
    if chances:
        sequence.promised = _TRUST_DECAY * sequence.promised + sum(chances[:tried])
        sequence.kept = _TRUST_DECAY * sequence.kept + num_accepted
    share = num_accepted / tried
    is_first = sequence.num_accepted + sequence.num_rejected == num_drafts
    before = PRIOR if is_first else sequence.acceptance
    sequence.acceptance = before + (1 - (1 - _LEARN) ** tried) * (share - before)
    before_hope = sequence.hope or _FORGET  # none yet: nothing was tried in vain
    sequence.hope = _FORGET if num_accepted else max(before_hope / 2, _LEAST_FORGET)


def heard(sequence: Sequence, *, was_asked: bool, has_draft: bool) -> None:
    """Whether the drafter had anything to say for a sequence: asking costs time where it seldom has."""
    if was_asked:
        sequence.coverage += _COVER * (has_draft - sequence.coverage)
    else:
        sequence.coverage += _FORGET * (1.0 - sequence.coverage)


def leave_alone(sequences: Values[Sequence], drafting: DraftCost) -> None:
    """No guess would pay in the next step: what spoke against them fades."""
    drafting.fade()
    for sequence in sequences:
        heard(sequence, was_asked=False, has_draft=False)


def _costs(sequences: Values[Sequence], pace: Pace) -> tuple[float | None, float, list[float]]:
    """Milliseconds of a step without guesses, of being no such step, and of one more token of each sequence.

    None while nothing is known.
    """
    count, attended = len(sequences), sum(len(sequence.tokens) for sequence in sequences)
    base, short = pace.predict(count, attended), pace.predict(count, attended, longest=2)
    if base is None or short is None:
        return None, 0.0, [0.0] * count
    # One more token attends to all before it.
    dearer = [pace.predict(count + 1, attended + len(sequence.tokens), longest=2) for sequence in sequences]
    return base, max(short - base, 0.0), [max((one or short) - short, 0.0) for one in dearer]


def _most(sequence: Sequence) -> int:
    """Guesses beyond what the request may still say would be cut off."""
    wanted = sequence.request.draft.max_draft
    room = sequence.max_tokens - sequence.num_output_tokens - 1
    return max(0, min(MAX_DRAFT if wanted is None else min(wanted, MAX_DRAFT), room))


def _guesses(sequences: Values[Sequence], most: Values[int]) -> Iterator[tuple[float, int, int]]:
    """Of each guess that could be made: the probability that it is accepted, its place in the draft, its sequence."""
    for number, sequence in enumerate(sequences):
        probability = chance = min(expected(sequence), 1.0)
        for place in range(1, most[number] + 1):
            yield probability, place, number
            probability *= chance


def _judged(sequence: Sequence, draft: Draft, limit: int, number: int) -> Iterator[tuple[float, int, int]]:
    """As `_guesses`, of one draft."""
    probability, belief = 1.0, trust(sequence)
    chances = draft.chances or (min(expected(sequence), 1.0),) * min(len(draft.tokens), limit)
    for place, chance in enumerate(chances, start=1):
        probability *= chance * belief if draft.chances else chance
        yield probability, place, number


def _best(
    guesses: list[tuple[float, int, int]],
    terms: Values[tuple[float, float]],
    base_ms: float,
    entry_ms: float,
    drafting: DraftCost,
    *,
    weight: float = 1.0,
    room: int = UNBOUNDED,
) -> list[int]:
    """How many guesses of each sequence give the most tokens per millisecond.

    `terms`: of each sequence the milliseconds that a guess costs, and how probably the drafter has any. `entry_ms`:
    what the first guess of all costs besides.
    `weight`: what a token that was guessed counts for. `room`: guesses that the step has room for.
    """
    guesses.sort(key=lambda guess: (-guess[0], guess[1]))
    gain, verifying, longest, asking = 0.0, entry_ms, 0, drafting.predict(0)
    best, best_count = len(terms) / max(base_ms, 1e-6), 0
    cheapest = min(cost for cost, _ in terms)
    for count, (probability, place, number) in enumerate(guesses[:room], start=1):
        if weight * probability < best * cheapest:
            break  # this one and all that follow are slower than what is known
        cost, coverage = terms[number]
        gain += weight * coverage * probability
        verifying += coverage * cost
        if place > longest:
            longest, asking = place, drafting.predict(place)
        speed = (len(terms) + gain) / max(base_ms + verifying + asking, 1e-6)
        if speed >= best:
            best, best_count = speed, count
    counts = [0] * len(terms)
    for _, place, number in guesses[:best_count]:
        counts[number] = max(counts[number], place)
    return counts
