"""Whether a request can ever run on this model: checked by the caller's thread before anything is queued.

Knows sizes and vocabulary, not what is running.
"""

from __future__ import annotations

from collections.abc import Iterable

from ortserve.runtime.errors import ContextLengthError, RequestError
from ortserve.runtime.grammar.constraint import Constraint
from ortserve.runtime.manifest import Manifest, RotaryRegime
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Request
from ortserve.runtime.rotary import assumed_tokens, choose_regime
from ortserve.runtime.sampling.history import TokenHistory
from ortserve.runtime.sequence import Sequence


def check_request(request: Request, manifest: Manifest, plan: EnginePlan) -> None:
    """Raise `RequestError` for an empty prompt or unknown ids, `ContextLengthError` for a prompt that is too long."""
    if not request.prompt:
        raise RequestError("the prompt has no tokens: send at least one", parameter="prompt")
    if len(request.prompt) >= plan.max_context:
        raise ContextLengthError(len(request.prompt), plan.max_context)
    sampling = request.sampling
    _check_ids(request.prompt, manifest.num_tokens, "prompt")
    _check_ids(sampling.stop_token_ids, manifest.num_tokens, "stop_token_ids")
    _check_ids((token for token, _ in sampling.logit_bias), manifest.num_tokens, "logit_bias")


def new_sequence(
    request: Request,
    manifest: Manifest,
    plan: EnginePlan,
    *,
    seed: int,
    arrival: int,
    now_s: float,
    constraint: Constraint | None = None,
) -> Sequence:
    """The engine's state of a checked request, with the constraint of its grammar.

    `max_tokens` is cut to what the context leaves; without it, to what is left of the rotary regime that is chosen.
    """
    sampling = request.sampling
    regime = _regime(request, plan)
    room = plan.max_context - len(request.prompt)
    has_penalty = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (
        1.0,
        0.0,
        0.0,
    )
    return Sequence(
        request=request,
        seed=seed,
        max_tokens=regime.max_tokens - len(request.prompt)
        if sampling.max_tokens is None
        else min(sampling.max_tokens, room),
        arrival=arrival,
        arrived_s=now_s,
        tokens=list(request.prompt),
        eos_ids=frozenset(() if sampling.ignore_eos else manifest.eos_token_ids),
        stop_ids=frozenset(sampling.stop_token_ids),
        history=TokenHistory(request.prompt) if has_penalty else None,
        constraint=constraint,
        regime=regime,
    )


def _regime(request: Request, plan: EnginePlan) -> RotaryRegime:
    num_prompt_tokens, max_tokens = len(request.prompt), request.sampling.max_tokens
    if request.planned_tokens is not None:
        wanted = max(request.planned_tokens, num_prompt_tokens + (max_tokens or 0))
    elif max_tokens is None:
        wanted = assumed_tokens(plan.rotary_regimes, num_prompt_tokens)
    else:
        wanted = num_prompt_tokens + max_tokens
    return choose_regime(plan.rotary_regimes, min(wanted, plan.max_context))


def _check_ids(ids: Iterable[int], num_tokens: int, parameter: str) -> None:
    for place, token in enumerate(ids):
        if not 0 <= token < num_tokens:
            raise RequestError(
                f"{parameter}[{place}] is {token}, the model has token ids 0 to {num_tokens - 1}", parameter=parameter
            )
