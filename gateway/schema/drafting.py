"""What a request says about speculation: OpenAI's predicted output, and how many guesses it allows. Knows no token."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.gateway.errors import bad_request
from ortserve.gateway.schema.fields import Fields, invalid_type, missing

MAX_DRAFT = 16


@dataclass(frozen=True, slots=True)
class DraftWish:
    """The request's own words. They change speed, never tokens."""

    prediction: str | None = None
    max_draft: int | None = None  # guesses per step; 0: none, None: the server decides


def read_draft_wish(fields: Fields) -> DraftWish:
    """`prediction` is `{type: content, content: string or text parts}`; `speculative` is `{max_draft: 0 to 16}`."""
    max_draft = read_max_draft(fields)
    prediction = fields.object("prediction")
    if prediction is None:
        return DraftWish(max_draft=max_draft)
    if prediction.choice("type", ("content",)) is None:
        raise missing(prediction.name("type"))
    return DraftWish(_read_content(prediction), max_draft)


def read_max_draft(fields: Fields) -> int | None:
    """`speculative.max_draft`; None when absent."""
    speculative = fields.object("speculative")
    return None if speculative is None else speculative.integer("max_draft", 0, MAX_DRAFT)


def _read_content(prediction: Fields) -> str:
    content = prediction.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        raise missing(prediction.name("content"))
    if not isinstance(content, list):
        raise invalid_type(prediction.name("content"), "one of a string or array of objects", content)
    parts = [prediction.element("content", index, part) for index, part in enumerate(content)]
    for part in parts:
        if part.required_string("type") != "text":
            message = f"Invalid value: '{part.get('type')}'. Supported values are: 'text'."
            raise bad_request(message, param=part.name("type"), code="invalid_value")
    return "".join(part.required_string("text") for part in parts)
