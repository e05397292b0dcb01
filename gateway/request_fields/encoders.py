"""POST /v1/embeddings, /v1/rerank and /v1/score, field by field."""

from __future__ import annotations

from ortserve.gateway.request_fields.rules import Rule, extension, honoured, ignored, refused_extension, required
from ortserve.gateway.request_fields.shapes import BOOLEAN, OBJECT, STRING, Shape, array, integer, one_of, words
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.embeddings import MAX_INPUTS

TOKENS: Shape = array(integer(0), min_items=1)
INPUT = one_of(STRING, TOKENS, array(one_of(STRING, TOKENS), min_items=1, max_items=MAX_INPUTS))
TEXTS = one_of(STRING, array(STRING, min_items=1, max_items=MAX_INPUTS))
MODEL = required("model", STRING, "a served name or the model's own")
USER = ignored("user", STRING, "nobody is told")


def _truncation(what: str) -> Rule:
    note = f"tokens of {what} to keep, -1 as many as the model takes; absent: what is too long is refused"
    return extension("truncate_prompt_tokens", integer(-1), note)


EMBEDDINGS = FieldTable(
    (
        MODEL,
        required("input", INPUT, "no empty text; token ids only with `serve --accept-token-ids`"),
        honoured("encoding_format", words("float", "base64"), "base64 is of little-endian float32"),
        honoured("dimensions", integer(1), "the model's own size, or a shorter one it was trained for"),
        USER,
        _truncation("each input"),
        extension("prompt_name", STRING, "of the model's prompts; absent: the one it names as default"),
    )
)
RERANK = FieldTable(
    (
        MODEL,
        required("query", STRING, "not empty"),
        required("documents", array(one_of(STRING, OBJECT), min_items=1, max_items=MAX_INPUTS), "no empty one"),
        required("documents[].text", STRING),
        honoured("top_n", integer(1), "all when absent"),
        honoured("return_documents", BOOLEAN, "false when absent"),
        honoured("max_tokens_per_doc", integer(1), "the rest of a document is cut off"),
        USER,
        _truncation("query and document together"),
        refused_extension("rank_fields", "a document is one text"),
        refused_extension("max_chunks_per_doc", "a document is scored as a whole"),
    )
)
SCORE = FieldTable(
    (
        MODEL,
        required("text_1", TEXTS, "one text is scored with each of the others"),
        required("text_2", TEXTS),
        USER,
        _truncation("both texts together"),
    )
)
