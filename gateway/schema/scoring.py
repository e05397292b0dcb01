"""The bodies of POST /v1/rerank and /v1/score, read field by field. Knows no encoder."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.gateway.errors import bad_request, unsupported_parameter
from ortserve.gateway.schema.embeddings import check_count, check_text, read_texts, read_truncation
from ortserve.gateway.schema.fields import Fields, invalid_type, missing


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One query and the documents to be put in order."""

    model: str
    query: str
    documents: tuple[str, ...]
    top_n: int | None
    return_documents: bool
    longest_document: int | None  # tokens to keep of each
    truncate: int | None  # tokens to keep of query and document together; -1: as many as the model takes


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Pairs of texts: firsts[i] with seconds[i]."""

    model: str
    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    truncate: int | None


def read_rerank(fields: Fields) -> RerankRequest:
    """Validate a whole body; `ApiError` (400) names the first field that is wrong or not supported."""
    model = fields.required_string("model")
    query = check_text(fields.required_string("query"), "query")
    documents = fields.array("documents", "an array of strings or objects")
    if documents is None:
        raise missing("documents")
    check_count(documents, "documents")
    for name in ("rank_fields", "max_chunks_per_doc"):
        if fields.has(name):
            raise unsupported_parameter(name, "is not supported: send every document as one text.")
    return RerankRequest(
        model=model,
        query=query,
        documents=tuple(_document(fields, place, value) for place, value in enumerate(documents)),
        top_n=fields.integer("top_n", 1),
        return_documents=fields.boolean("return_documents"),
        longest_document=fields.integer("max_tokens_per_doc", 1),
        truncate=read_truncation(fields),
    )


def read_score(fields: Fields) -> ScoreRequest:
    """Validate a whole body. One text on the left is scored with every text on the right."""
    model = fields.required_string("model")
    firsts, seconds = _side(fields, "text_1"), _side(fields, "text_2")
    if len(firsts) == 1:
        firsts *= len(seconds)
    if len(firsts) != len(seconds):
        message = (
            f"Invalid 'text_2': {len(firsts)} texts in 'text_1' need as many in 'text_2', but got {len(seconds)}."
            " One text in 'text_1' is scored with all of them."
        )
        raise bad_request(message, param="text_2", code="invalid_value")
    return ScoreRequest(model, firsts, seconds, read_truncation(fields))


def _document(fields: Fields, place: int, value: object) -> str:
    param = f"documents[{place}]"
    if isinstance(value, str):
        return check_text(value, param)
    if isinstance(value, dict):
        return check_text(fields.element("documents", place, value).required_string("text"), f"{param}.text")
    raise invalid_type(param, "one of a string or object", value)


def _side(fields: Fields, key: str) -> tuple[str, ...]:
    value = fields.get(key)
    if value is None:
        raise missing(key)
    if isinstance(value, str):
        return (check_text(value, key),)
    if isinstance(value, list):
        return read_texts(value, key)
    raise invalid_type(key, "one of a string or array of strings", value)
