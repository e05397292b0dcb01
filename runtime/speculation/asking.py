"""Asks for the guesses of one step, and tells what became of them: the engine's side of drafting. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence as Values

from ortserve.runtime.scheduling.pace import Pace
from ortserve.runtime.scheduling.scheduler import Advance, Drafts
from ortserve.runtime.sequence import Sequence
from ortserve.runtime.speculation.adaptation import heard, learn, leave_alone, limits, rooms, worthwhile
from ortserve.runtime.speculation.drafting import Drafting, Verification
from ortserve.runtime.speculation.payoff import Payoff
from ortserve.runtime.step import Step

_STALL = 4  # times what a step should take: one that took longer was held up by others


def ask(drafting: Drafting, decoding: Values[Sequence], pace: Pace) -> Drafts:
    """Guesses for the next step of the `decoding` sequences, by request: those that pay."""
    drafting.payoff.drop()  # of a step that failed
    if not drafting.serves(decoding):
        return {}
    if drafting.catch_up(decoding):
        return {}  # it reads what came while it rested; asked now, it would be late
    drafting.payoff.ask(len(decoding))
    allowed = limits(decoding, pace, drafting.cost)
    if not allowed:
        leave_alone(decoding, drafting.cost)
        return {}
    predicted = pace.predict(len(decoding), sum(len(sequence.tokens) for sequence in decoding))
    drafts = drafting.propose(decoding, allowed, (predicted or 0.0) / 1000, rooms(decoding, allowed))
    for sequence in decoding:
        name = sequence.request.id
        heard(sequence, was_asked=name in allowed, has_draft=name in drafts)
    return worthwhile(drafts, allowed, decoding, pace)


def is_free(drafting: Drafting | None, decoding: Values[Sequence], pace: Pace) -> bool:
    """The next step of the `decoding` sequences will come without guesses, so that it may be prepared early."""
    return drafting is None or not drafting.serves(decoding) or not limits(decoding, pace, drafting.cost)


def tell(drafting: Drafting, advances: Values[Advance], token_s: float) -> None:
    """What a step did. `token_s`: seconds of it per token fed."""
    results = []
    for advance in advances:
        if not advance.added:
            continue
        chances = drafting.chances(advance.sequence.request.id)
        learn(advance.sequence, advance.num_drafts, advance.num_accepted, chances)
        if advance.num_drafts:
            tokens = tuple(one.token_id for one in advance.added if one.token_id is not None)
            seconds = token_s * advance.num_drafts
            results.append(Verification(advance.sequence, advance.num_drafts, advance.num_accepted, tokens, seconds))
    drafting.observe(results)


def measure(
    payoff: Payoff, step: Step, num_tokens: int, pace: Pace, *, is_exact: bool, seconds: float, now_s: float
) -> None:
    """What a step took that gave its rows `num_tokens`, with or without guesses, in `seconds` from one step's end on.

    `is_exact`: deterministic mode, where a single token brings its predecessor along.
    """
    plain_ms, whole_ms = _plain_ms(step, pace, is_exact=is_exact), pace.predict(step.num_tokens, step.num_attended)
    if plain_ms is None or whole_ms is None:
        payoff.drop()
        return
    seconds = min(seconds, _STALL * max(plain_ms, whole_ms) / 1000)
    payoff.observe(len(step.rows), num_tokens, seconds, plain_ms / 1000, now_s)


def _plain_ms(step: Step, pace: Pace, *, is_exact: bool) -> float | None:
    """Of the same rows without guesses; None where there are prompts among them, or too little is known."""
    if not step.rows or any(row.num_scored or len(row.tokens) > row.num_logits + is_exact for row in step.rows):
        return None
    per_row = 2 if is_exact else 1
    return pace.predict(per_row * len(step.rows), per_row * sum(row.end - len(row.drafts) for row in step.rows))
