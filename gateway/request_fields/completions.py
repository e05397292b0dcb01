"""POST /v1/completions, field by field."""

from __future__ import annotations

from ortserve.gateway.request_fields.rules import honoured, required
from ortserve.gateway.request_fields.sampling import CACHING, CHOOSING, EXTENSIONS, FOREIGN, FORMATS, TOKEN_ID
from ortserve.gateway.request_fields.shapes import BOOLEAN, STRING, array, integer, one_of
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.completions import DEFAULT_MAX_TOKENS, MAX_BEST_OF, MAX_LOGPROBS, MAX_PROMPTS

TOKENS = array(TOKEN_ID, min_items=1)
PROMPT = one_of(STRING, TOKENS, array(one_of(STRING, TOKENS), min_items=1, max_items=MAX_PROMPTS))

COMPLETIONS = FieldTable(
    (
        required("model", STRING, "the served name or the model's own"),
        honoured("prompt", PROMPT, "token ids are this model's; absent: the beginning of a document"),
        honoured("max_tokens", integer(0), f"{DEFAULT_MAX_TOKENS} when absent; 0 only with `echo`"),
        *CHOOSING,
        honoured("echo", BOOLEAN),
        honoured("logprobs", integer(0, MAX_LOGPROBS), "log-softmax of the raw logits; with `echo` of the prompt too"),
        honoured("best_of", integer(0, MAX_BEST_OF), "the `n` with the largest mean log-probability; not streamed"),
        honoured("suffix", STRING, "a 400 when the model has no tokens for filling in the middle"),
        *CACHING,
        *EXTENSIONS,
        *FORMATS,
        *FOREIGN,
    )
)
