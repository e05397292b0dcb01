"""Sampling fields shared by chat and text completions, as the runtime's `SamplingParams`. Knows no prompt."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.gateway.errors import ApiError, bad_request, context_overflow
from ortserve.gateway.schema.fields import Fields, empty_array, invalid_type
from ortserve.runtime.request import SamplingParams

MAX_STOPS = 64  # OpenAI allows 4; evaluation harnesses send more
MAX_STOP_LENGTH = 4096
MAX_CHOICES = 128
MAX_PENALTY = 2
MIN_REPETITION, MAX_REPETITION = 0.01, 100
INT64_MAX = 2**63 - 1
IDS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """Values of the fields a request omits: the model author's, or OpenAI's (all ones)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a prompt may be made of: ids in [0, num_tokens), fewer than `max_context` of them."""

    num_tokens: int
    max_context: int

    def check_count(self, count: int, param: str, *, exact: bool = False) -> None:
        """Raise a 400 when `count` tokens, or at least as many, leave no room: before any of them is looked at."""
        if count >= self.max_context:
            raise ApiError(context_overflow(count, self.max_context, param=param, exact=exact))

    def check(self, token_id: int, param: str) -> int:
        """The id itself; a 400 when the model has no such token."""
        if not 0 <= token_id < self.num_tokens:
            message = f"Invalid '{param}': token id {token_id} is not in this model's vocabulary of {self.num_tokens}."
            raise bad_request(message, param=param, code="invalid_value")
        return token_id


def read_sampling(
    fields: Fields,
    defaults: SamplingDefaults,
    vocabulary: Vocabulary,
    *,
    max_tokens: int | None,
    num_logprobs: int | None,
) -> SamplingParams:
    """Read every field that changes how tokens are drawn."""
    temperature = fields.number("temperature", 0, 2)
    top_p = fields.number("top_p", 0, 1)
    top_k = fields.integer("top_k", -1)
    repetition_penalty = fields.number("repetition_penalty", MIN_REPETITION, MAX_REPETITION)
    return SamplingParams(
        temperature=defaults.temperature if temperature is None else temperature,
        top_p=defaults.top_p if top_p is None else top_p,
        top_k=defaults.top_k if top_k is None else max(top_k, 0),  # -1 is "off" elsewhere
        min_p=fields.number("min_p", 0, 1) or 0.0,
        repetition_penalty=defaults.repetition_penalty if repetition_penalty is None else repetition_penalty,
        frequency_penalty=fields.number("frequency_penalty", -MAX_PENALTY, MAX_PENALTY) or 0.0,
        presence_penalty=fields.number("presence_penalty", -MAX_PENALTY, MAX_PENALTY) or 0.0,
        logit_bias=_read_logit_bias(fields, vocabulary),
        seed=fields.integer("seed", -INT64_MAX - 1, INT64_MAX),
        max_tokens=max_tokens,
        min_tokens=fields.integer("min_tokens", 0) or 0,
        stop_token_ids=_read_stop_token_ids(fields, vocabulary),
        ignore_eos=fields.boolean("ignore_eos"),
        num_logprobs=num_logprobs,
    )


def read_num_choices(fields: Fields) -> int:
    """`n`, 1 when absent."""
    return fields.integer("n", 1, MAX_CHOICES) or 1


def read_stops(fields: Fields) -> tuple[str, ...]:
    """`stop` as strings; empty strings are refused because they would match everywhere."""
    value = fields.get("stop")
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise invalid_type(fields.name("stop"), "one of a string or array of strings", value)
    check_num_stops(items, "stop")
    return tuple(
        read_stop(item, "stop" if isinstance(value, str) else f"stop[{index}]") for index, item in enumerate(items)
    )


def check_num_stops(items: list[object], param: str) -> None:
    """Raise a 400 for more stop strings than one reply is searched for."""
    if len(items) > MAX_STOPS:
        message = (
            f"Invalid '{param}': array too long. Expected an array with maximum length {MAX_STOPS}, "
            f"but got an array with length {len(items)} instead."
        )
        raise bad_request(message, param=param, code="array_above_max_length")


def read_stop(item: object, param: str) -> str:
    """One stop string."""
    if not isinstance(item, str):
        raise invalid_type(param, "a string", item)
    if not 0 < len(item) <= MAX_STOP_LENGTH:
        message = f"Invalid '{param}': expected 1 to {MAX_STOP_LENGTH} characters, but got {len(item)} instead."
        raise bad_request(message, param=param, code="invalid_value")
    return item


def read_include_usage(fields: Fields, *, stream: bool) -> bool:
    """`stream_options.include_usage`; options without `stream` are a 400, as at OpenAI."""
    options = fields.object("stream_options")
    if options is None:
        return False
    if not stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise bad_request(message, param="stream_options", code="invalid_value")
    return options.boolean("include_usage")


def _read_logit_bias(fields: Fields, vocabulary: Vocabulary) -> tuple[tuple[int, float], ...]:
    bias = fields.object("logit_bias")
    if bias is None:
        return ()
    pairs = []
    for key in bias.data:
        param = f"logit_bias.{key}"
        if not (key.isascii() and key.isdigit() and len(key) < 12):
            message = f"Invalid key in 'logit_bias': '{key}' is not a token id (a whole number as a string)."
            raise bad_request(message, param="logit_bias", code="invalid_value")
        value = bias.number(key, -100, 100)
        if value is not None:
            pairs.append((vocabulary.check(int(key), param), value))
    return tuple(pairs)


def _read_stop_token_ids(fields: Fields, vocabulary: Vocabulary) -> tuple[int, ...]:
    values = fields.array("stop_token_ids", "an array of integers")
    if not values:
        return ()
    return read_token_ids(values, "stop_token_ids", vocabulary)


def read_prompt_ids(values: list[object], param: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The same of a prompt, which is refused unread when it is too long."""
    vocabulary.check_count(len(values), param, exact=True)
    return read_token_ids(values, param, vocabulary)


def read_token_ids(values: list[object], param: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    """An array of token ids of this model; a 400 naming the first that is not."""
    if not values:
        raise empty_array(param)
    for begin in range(0, len(values), IDS_AT_ONCE):
        some = values[begin : begin + IDS_AT_ONCE]
        # Passes in C: one in Python takes a tenth of a second for a million ids.
        if set(map(type, some)) != {int} or min(some) < 0 or max(some) >= vocabulary.num_tokens:  # type: ignore[type-var, operator]
            for index, value in enumerate(some, begin):
                _check_token_id(value, f"{param}[{index}]", vocabulary)
    return tuple(values)  # type: ignore[arg-type]


def _check_token_id(value: object, param: str, vocabulary: Vocabulary) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid_type(param, "an integer", value)
    vocabulary.check(value, param)
