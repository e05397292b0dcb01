"""How many guesses a sequence may be given: as many as pay, by measured acceptance and measured cost. Knows no drafter.

The j-th guess of a sequence is worth the probability that it and all before it are accepted, and costs what one more
token adds to the step. It pays while its worth per time exceeds the tokens per time of the step without it.
"""

from __future__ import annotations

from collections.abc import Sequence as Values

from ortserve.runtime.pace import Pace
from ortserve.runtime.sequence import Sequence

PRIOR = 0.7  # acceptance of a sequence nobody has drafted for
MAX_DRAFT = 16
_LEARN = 0.2  # weight of the newest verification
_FORGET = 0.01  # per undrafted step, back towards the prior: what did not pay is tried again
_FIRST_TRIES = 4  # guesses while the cost of a step is not known yet


def limits(sequences: Values[Sequence], pace: Pace) -> dict[str, int]:
    """Guesses allowed for each of the decoding `sequences`; those that get none are left out."""
    allowed: dict[str, int] = {}
    tokens = len(sequences)
    attended = sum(len(sequence.tokens) for sequence in sequences)
    base, more = pace.predict(tokens, attended), pace.predict(tokens + 1, attended)
    for sequence in sequences:
        most = sequence.request.draft.max_draft
        most = MAX_DRAFT if most is None else min(most, MAX_DRAFT)
        if base is None or more is None:
            count = _FIRST_TRIES
        else:
            count = _paying(expected(sequence), worth=tokens / max(base, 1e-6), cost=max(more - base, 0.0))
        if min(count, most) > 0:
            allowed[sequence.request.id] = min(count, most)
    return allowed


def expected(sequence: Sequence) -> float:
    """Probability that the next guess for a sequence is accepted."""
    return sequence.acceptance if sequence.num_accepted + sequence.num_rejected else PRIOR


def learn(sequence: Sequence, num_drafts: int, num_accepted: int) -> None:
    """Take a verification into account, or (without drafts) let an old verdict fade."""
    if num_drafts == 0:
        if sequence.num_accepted + sequence.num_rejected:
            sequence.acceptance += _FORGET * (PRIOR - sequence.acceptance)
        return
    # Guesses after the first wrong one were not tried: they say nothing.
    tried = min(num_accepted + 1, num_drafts)
    share = num_accepted / tried
    is_first = sequence.num_accepted + sequence.num_rejected == num_drafts
    before = PRIOR if is_first else sequence.acceptance
    sequence.acceptance = before + (1 - (1 - _LEARN) ** tried) * (share - before)


def _paying(acceptance: float, *, worth: float, cost: float) -> int:
    """The largest j with acceptance ** j >= worth * cost (tokens per millisecond times milliseconds per token)."""
    probability, count = acceptance, 0
    while count < MAX_DRAFT and probability >= worth * cost:
        count += 1
        probability *= acceptance
    return count
