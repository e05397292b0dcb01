"""How a sequence takes over tokens: drawn ones, and those that its grammar forces. Knows no step and no other one."""

from __future__ import annotations

from ortserve.runtime.request import FinishReason
from ortserve.runtime.sampling.sampler import Drawn
from ortserve.runtime.sequence import Sequence


def open_reply(sequence: Sequence) -> None:
    """Put what a grammar forces at the very beginning behind the prompt: it is computed with it.

    The last one is left to be drawn: it may complete the reply, and a reply comes out of a step.
    """
    sampling = sequence.request.sampling
    if sequence.constraint is None or sampling.num_logprobs is not None or sampling.num_prompt_logprobs is not None:
        return
    for token in sequence.constraint.forced()[:-1][: max(sequence.max_tokens - 1, 0)]:
        if sequence.is_end(token) or not sequence.take(token):
            return


def take_drawn(sequence: Sequence, drawn: tuple[Drawn, ...], added: list[Drawn]) -> tuple[FinishReason | None, int]:
    """Append what was drawn, up to the token that ends the request; returns how many were taken."""
    for count, one in enumerate(drawn, 1):
        added.append(one)
        if one.token_id is None or not sequence.take(one.token_id):
            return FinishReason.ERROR, count
        finish = sequence.finish_after(one.token_id)
        if finish is not None:
            return finish, count
    return None, len(drawn)


def take_forced(sequence: Sequence, added: list[Drawn], num_taken: int) -> FinishReason | None:
    """Append what must come next by the grammar. Where log-probabilities are wanted it waits for its logits.

    `num_taken` tokens have just been drawn, among them those that waited.
    """
    sequence.num_trailing = 1
    if sequence.constraint is None:
        return None
    forced = sequence.forced[num_taken:] or sequence.constraint.forced()
    if sequence.request.sampling.num_logprobs is not None:
        sequence.forced = forced
        return None
    for token in forced:
        added.append(Drawn(token))
        if not sequence.take(token):
            return FinishReason.ERROR
        sequence.num_trailing += 1
        finish = sequence.finish_after(token)
        if finish is not None:
            return finish
    return None
