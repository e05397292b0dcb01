"""Fields that several generating endpoints share. The intervals are those that `schema` reads them with."""

from __future__ import annotations

from ortserve.gateway.request_fields.rules import (
    Rule,
    extension,
    honoured,
    ignored,
    refused,
    refused_extension,
    required,
)
from ortserve.gateway.request_fields.shapes import (
    BOOLEAN,
    OBJECT,
    STRING,
    array,
    integer,
    mapping,
    number,
    one_of,
    string,
    words,
)
from ortserve.gateway.schema.caching import MAX_KEY_LENGTH, MODES, RETENTIONS
from ortserve.gateway.schema.drafting import MAX_DRAFT
from ortserve.gateway.schema.sampling import (
    INT64_MAX,
    MAX_CHOICES,
    MAX_PENALTY,
    MAX_REPETITION,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    MIN_REPETITION,
)
from ortserve.gateway.schema.structure import (
    FOREIGN_FIELDS,
    FORMAT_TYPES,
    GUIDED_FIELDS,
    MAX_GUIDED_CHOICES,
    MAX_NAME_LENGTH,
)

STOP = string(MAX_STOP_LENGTH)
TOKEN_ID = integer(0)

# OpenAI's, on all its generating endpoints.
DRAWING: tuple[Rule, ...] = (
    honoured("temperature", number(0, 2), "0 is greedy; absent: the model author's value, shown by /v1/models"),
    honoured("top_p", number(0, 1), "0 keeps the most likely token"),
)
# OpenAI's, on chat and text completions.
CHOOSING: tuple[Rule, ...] = (
    *DRAWING,
    honoured("frequency_penalty", number(-MAX_PENALTY, MAX_PENALTY)),
    honoured("presence_penalty", number(-MAX_PENALTY, MAX_PENALTY)),
    honoured("logit_bias", mapping(number(-100, 100)), "keys are token ids of this model"),
    honoured("seed", integer(-INT64_MAX - 1, INT64_MAX), "the same reply whatever else runs"),
    honoured("n", integer(1, MAX_CHOICES), "the prompt is computed once"),
    honoured("stop", one_of(STOP, array(STOP, max_items=MAX_STOPS)), "never part of the text"),
    honoured("stream", BOOLEAN),
    honoured("stream_options", OBJECT, "only with `stream`"),
    honoured("stream_options.include_usage", BOOLEAN),
    ignored("stream_options.include_obfuscation", BOOLEAN, "chunks are never padded", neutral=(False,)),
    ignored("user", STRING, "neither logged nor stored"),
)
# What other servers take under these names.
EXTENSIONS: tuple[Rule, ...] = (
    extension("top_k", integer(-1), "0 and -1: off"),
    extension("min_p", number(0, 1), "relative to the largest probability"),
    extension("repetition_penalty", number(MIN_REPETITION, MAX_REPETITION), "over prompt and output; 1: off"),
    extension("min_tokens", integer(0), "end-of-sequence ids cannot be drawn before"),
    extension("stop_token_ids", array(TOKEN_ID), "ids that end the reply"),
    extension("ignore_eos", BOOLEAN, "go on until `max_tokens`"),
    extension("cache_salt", string(MAX_KEY_LENGTH), "divides a key's cached prefixes further"),
    extension("speculative", OBJECT),
    extension("speculative.max_draft", integer(0, MAX_DRAFT), "guesses per step; 0: none"),
)
# What the reply must look like. Everything that cannot be enforced is refused.
FORMATS: tuple[Rule, ...] = (
    honoured("response_format", OBJECT),
    required("response_format.type", words(*FORMAT_TYPES)),
    honoured("response_format.json_schema", OBJECT),
    required("response_format.json_schema.name", string(MAX_NAME_LENGTH), "letters, digits, `_` and `-`"),
    required("response_format.json_schema.schema", OBJECT, "a keyword that cannot be enforced is refused by name"),
    honoured("response_format.json_schema.strict", BOOLEAN, "enforced in any case"),
    honoured("response_format.json_schema.description", STRING, "not shown to the model"),
    extension("guided_json", OBJECT, "a JSON schema"),
    extension("guided_regex", STRING, "the whole reply matches; no look-around, no back-references"),
    extension("guided_choice", array(STRING, min_items=1, max_items=MAX_GUIDED_CHOICES), "one of these texts"),
    extension("guided_grammar", STRING, "in llguidance's dialect of Lark, with a `start` rule"),
)
FOREIGN: tuple[Rule, ...] = tuple(
    refused_extension(name, "`response_format` or a `guided_` field says it") for name in FOREIGN_FIELDS
)
CONSTRAINTS: tuple[Rule, ...] = tuple(
    refused_extension(name, "this endpoint has its own field for it") for name in (*GUIDED_FIELDS, *FOREIGN_FIELDS)
)
CACHING: tuple[Rule, ...] = (
    honoured("prompt_cache_key", string(MAX_KEY_LENGTH), "brings related requests together"),
    honoured("prompt_cache_options", OBJECT),
    honoured("prompt_cache_options.mode", words(*MODES), "`auto` and `off` are extensions"),
    honoured("prompt_cache_options.ttl", STRING, "whole s, m or h up to 24h"),
    refused("prompt_cache_options.prewarm", BOOLEAN, "`ortserve cache warm` does that", neutral=(False,)),
    honoured("prompt_cache_retention", words(*RETENTIONS), "`in_memory` keeps the prompt off the disk"),
)
BREAKPOINT: tuple[Rule, ...] = (
    honoured("prompt_cache_breakpoint", OBJECT, "a reusable prefix ends here"),
    honoured("prompt_cache_breakpoint.mode", words("explicit")),
    honoured("prompt_cache_breakpoint.ttl", STRING, "whole s, m or h up to 24h"),
)
