"""The body of POST /v1/completions, read field by field. What is not implemented is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ortserve.gateway.errors import bad_request
from ortserve.gateway.schema.caching import CacheWish, read_cache_wish
from ortserve.gateway.schema.drafting import read_max_draft
from ortserve.gateway.schema.fields import Fields, empty_array, invalid_type
from ortserve.gateway.schema.sampling import (
    SamplingDefaults,
    Vocabulary,
    read_include_usage,
    read_num_choices,
    read_prompt_ids,
    read_sampling,
    read_stops,
)
from ortserve.gateway.schema.structure import Structure, read_structure
from ortserve.runtime.request import SamplingParams

DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 20  # OpenAI allows 5
MAX_BEST_OF = 20
MAX_PROMPTS = 2048
MAX_SEQUENCES = 1024  # prompts times choices; as many as an engine's queue holds by default
TYPE_OF_PROMPT = "one of a string, array of strings, array of integers or array of arrays of integers"


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One validated call. A prompt is text or token ids.

    `sampling.max_tokens` 0 generates nothing (only with `echo`). With `echo` and `logprobs` the prompt is judged too.
    """

    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    sampling: SamplingParams
    num_choices: int
    num_candidates: int  # generated for each prompt; the best ones are returned
    suffix: str | None  # what comes after the text to be written
    stops: tuple[str, ...]
    echo: bool
    with_logprobs: bool
    stream: bool
    include_usage: bool
    cache: CacheWish
    max_draft: int | None  # guesses per step
    structure: Structure | None = None  # what each reply must look like


def read_completion(fields: Fields, defaults: SamplingDefaults, vocabulary: Vocabulary) -> CompletionRequest:
    """Validate a whole body; `ApiError` (400) names the first field that is wrong or not supported."""
    model = fields.required_string("model")
    prompts = _read_prompts(fields, vocabulary)
    echo = fields.boolean("echo")
    stream = fields.boolean("stream")
    num_choices = read_num_choices(fields)
    num_candidates = _read_num_candidates(fields, num_choices, stream=stream)
    if len(prompts) * num_candidates > MAX_SEQUENCES:
        param = "n" if num_candidates == num_choices else "best_of"
        message = (
            f"Invalid '{param}': {len(prompts)} prompts with {param}={num_candidates} exceed {MAX_SEQUENCES} choices in"
            " one request."
        )
        raise bad_request(message, param=param, code="integer_above_max_value")
    num_logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    max_tokens = fields.integer("max_tokens", 0)
    max_tokens = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    if max_tokens == 0 and not echo:
        message = "Invalid 'max_tokens': 0 is only allowed with 'echo', since nothing would be returned."
        raise bad_request(message, param="max_tokens", code="integer_below_min_value")
    sampling = read_sampling(fields, defaults, vocabulary, max_tokens=max_tokens, num_logprobs=num_logprobs)
    suffix = fields.string("suffix") or None
    if echo and num_logprobs is not None:
        if suffix is not None:
            message = "Invalid 'logprobs': a prompt with 'suffix' cannot be judged."
            raise bad_request(message, param="logprobs", code="invalid_value")
        sampling = replace(sampling, num_prompt_logprobs=num_logprobs)
    if num_candidates > num_choices and num_logprobs is None:
        sampling = replace(sampling, num_logprobs=0)  # by which they are ranked
    return CompletionRequest(
        model=model,
        prompts=prompts,
        sampling=sampling,
        num_choices=num_choices,
        num_candidates=num_candidates,
        suffix=suffix,
        stops=read_stops(fields),
        echo=echo,
        with_logprobs=num_logprobs is not None,
        stream=stream,
        include_usage=read_include_usage(fields, stream=stream),
        cache=read_cache_wish(fields),
        max_draft=read_max_draft(fields),
        structure=read_structure(fields),
    )


def _read_prompts(fields: Fields, vocabulary: Vocabulary) -> tuple[str | tuple[int, ...], ...]:
    value = fields.get("prompt")
    if value is None:
        return ("",)  # the beginning of a document
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise invalid_type("prompt", TYPE_OF_PROMPT, value)
    if not value:
        raise empty_array("prompt")
    if isinstance(value[0], int) and not isinstance(value[0], bool):
        return (read_prompt_ids(value, "prompt", vocabulary),)
    if len(value) > MAX_PROMPTS:
        message = (
            f"Invalid 'prompt': array too long. Expected an array with maximum length {MAX_PROMPTS}, "
            f"but got an array with length {len(value)} instead."
        )
        raise bad_request(message, param="prompt", code="array_above_max_length")
    return tuple(_read_prompt(item, f"prompt[{index}]", vocabulary) for index, item in enumerate(value))


def _read_prompt(item: object, param: str, vocabulary: Vocabulary) -> str | tuple[int, ...]:
    if isinstance(item, str):
        return item
    if isinstance(item, list):
        return read_prompt_ids(item, param, vocabulary)
    raise invalid_type(param, "one of a string or array of integers", item)


def _read_num_candidates(fields: Fields, num_choices: int, *, stream: bool) -> int:
    """`best_of`, at least `n`; 0 is as good as absent."""
    best_of = fields.integer("best_of", 0, MAX_BEST_OF)
    if not best_of:
        return num_choices
    if best_of < num_choices:
        message = f"Invalid 'best_of': it must not be less than 'n', which is {num_choices}."
        raise bad_request(message, param="best_of", code="integer_below_min_value")
    if best_of > num_choices and stream:
        message = "Invalid 'best_of': the best of several choices is known at their end, so it cannot be streamed."
        raise bad_request(message, param="best_of", code="invalid_value")
    return best_of
