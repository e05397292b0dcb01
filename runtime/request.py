"""Frozen values that cross the engine's thread boundary. Knows token ids, never text, and no scheduling state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from ortserve.plugins.api import Breakpoint, CacheMode
from ortserve.runtime.errors import RequestError


class FinishReason(StrEnum):
    """Why a request produced its last token."""

    STOP = "stop"  # an end-of-sequence id, one of `stop_token_ids`, or nothing can follow by the request's grammar
    LENGTH = "length"  # max_tokens, or the context is full
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn; applied in the order penalties, bias, bans, grammar, temperature, top-k, top-p,
    min-p.

    `temperature` 0 is greedy (ties to the lowest id). `seed` None lets the engine choose one; the same seed, choice
    and prompt draw the same tokens, whatever else is in the batch.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0  # relative to the largest probability
    repetition_penalty: float = 1.0  # over prompt and output; 1: off (CTRL, arXiv 1909.05858)
    frequency_penalty: float = 0.0  # per occurrence in the output
    presence_penalty: float = 0.0  # once if it occurs in the output
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    max_tokens: int | None = None  # None: the rest of the context or rotary regime; 0: only the prompt is computed
    min_tokens: int = 0  # end-of-sequence ids cannot be drawn before that many tokens
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None  # None: none; 0: the drawn token's only; n: that and the n most likely
    num_prompt_logprobs: int | None = None  # the same of the prompt's tokens but the first, each given those before

    def __post_init__(self) -> None:
        """Raise `RequestError` naming the first value outside its interval."""
        _require(0.0 <= self.temperature < math.inf, "temperature", "at least 0 and finite", self.temperature)
        _require(self.top_k >= 0, "top_k", "at least 0 (0 switches it off)", self.top_k)
        _require(0.0 <= self.top_p <= 1.0, "top_p", "between 0 and 1", self.top_p)
        _require(0.0 <= self.min_p <= 1.0, "min_p", "between 0 and 1", self.min_p)
        penalty = self.repetition_penalty
        _require(0.0 < penalty < math.inf, "repetition_penalty", "above 0 and finite", penalty)
        _require(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", "between -2 and 2", self.frequency_penalty)
        _require(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", "between -2 and 2", self.presence_penalty)
        _require(self.max_tokens is None or self.max_tokens >= 0, "max_tokens", "at least 0", self.max_tokens)
        _require(self.min_tokens >= 0, "min_tokens", "at least 0", self.min_tokens)
        for name in ("num_logprobs", "num_prompt_logprobs"):
            number = getattr(self, name)
            _require(number is None or 0 <= number <= 20, name, "between 0 and 20", number)
        for _, bias in self.logit_bias:
            _require(math.isfinite(bias), "logit_bias", "of finite numbers", bias)


def _require(holds: bool, parameter: str, interval: str, value: object) -> None:
    if not holds:  # also catches NaN, which fails every comparison
        raise RequestError(f"{parameter} must be {interval}, not {value}", parameter=parameter)


@dataclass(frozen=True, slots=True)
class CacheHints:
    """What a request says about reusing computed prefixes, and about others reusing its own."""

    salt: bytes = b""  # nothing is ever reused across salts
    mode: CacheMode = CacheMode.AUTO
    breakpoints: tuple[Breakpoint, ...] = ()
    affinity: str | None = None  # the client's word for requests that belong together
    durable: bool = True  # False: what is computed is kept in memory only


@dataclass(frozen=True, slots=True)
class DraftHints:
    """What a request says about speculation. It changes speed, never tokens."""

    prediction: tuple[int, ...] | None = None  # tokens the client expects as output
    max_draft: int | None = None  # guesses per step; 0 switches drafting off, None leaves it to the engine


class GrammarKind(StrEnum):
    """The language a grammar is written in."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"  # of the whole reply, in the syntax of Rust's regex crate: no look-around, no back-references
    LARK = "lark"  # llguidance's dialect, with a `start` rule


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply must look like, as text that only the engine's grammar library reads.

    With `after`, anything may be said first: the grammar holds for what follows the first occurrence of that text. With
    `opener` as well, only by a reply that begins with it; any other is held to the grammar from its first token.

    Each of `markers`, which may be special tokens, gives a Lark grammar three rules: `marker_0`, the text itself;
    `until_marker_0`, any text up to and with it; `without_marker_0`, any text that does not have it, perhaps none.
    """

    kind: GrammarKind
    text: str
    after: str = ""
    opener: str = ""
    markers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate. `prompt` are token ids, at least one."""

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0  # larger runs first
    choice: int = 0  # index among the n choices of one API call; part of the random key
    group: str | None = None  # requests of one group have the same prompt, which is computed once
    cache: CacheHints = CacheHints()
    draft: DraftHints = DraftHints()
    grammar: Grammar | None = None  # no token that it does not allow is ever drawn
    tenant: bytes = b""  # those of one tenant take turns with others', by tokens computed
    weight: int = 1  # of the tenant's share, at least 1
    max_wait_s: float | None = None  # refused when it would have to wait longer for its row
    planned_tokens: int | None = None  # at least: rotates as a request that long would; None: prompt and max_tokens


class _Told(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is made for every token: several times cheaper to make than a dataclass, an array where it is encoded.

    Nothing in one refers back to it, so that the garbage collector need not look at those that somebody keeps.
    """


class TokenLogprobs(_Told, frozen=True):
    """Log-softmax of the raw logits at one position: natural logarithms, never -inf."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), most likely first


class Usage(_Told, frozen=True):
    """What one finished request consumed; counts are tokens, times are seconds."""

    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompt, taken from a cache or from another choice
    num_cache_write_tokens: int  # of the prompt, computed here and saved for others
    num_output_tokens: int
    num_accepted_tokens: int  # of drafts, part of the output
    num_rejected_tokens: int  # of drafts, computed for nothing
    num_preemptions: int
    queue_s: float
    time_to_first_token_s: float
    total_s: float


class Delta(_Told, frozen=True):
    """What one step added to one request. The last one of a request carries `finish` and `usage`.

    A stop or end-of-sequence id that ends the request is counted in `usage` but not among `token_ids`.
    """

    request_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()  # as many as token_ids when asked for
    finish: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None  # one line, with FinishReason.ERROR
    is_lost: bool = False  # with FinishReason.ERROR: the whole engine has failed, and another one may run the request
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt's next tokens, when asked for; all before the first


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole reply: all deltas of a request joined."""

    request_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason
    usage: Usage
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of every prompt token but the first, when asked for
