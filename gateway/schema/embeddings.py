"""The body of POST /v1/embeddings, read field by field. Knows no encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ortserve.gateway.errors import bad_request
from ortserve.gateway.schema.fields import Fields, check_range, empty_array, invalid_type

MAX_INPUTS = 2048
TYPE_OF_INPUT = "one of a string, array of strings, array of integers or array of arrays of integers"
Encoding = Literal["float", "base64"]


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """One validated call. An input is text or this model's token ids, special ones included."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    is_base64: bool
    dimensions: int | None
    truncate: int | None  # tokens to keep; -1: as many as the model takes
    prompt_name: str | None


def read_embedding(fields: Fields) -> EmbeddingRequest:
    """Validate a whole body; `ApiError` (400) names the first field that is wrong."""
    model = fields.required_string("model")
    inputs = _read_inputs(fields)
    return EmbeddingRequest(
        model=model,
        inputs=inputs,
        is_base64=fields.choice("encoding_format", ("float", "base64")) == "base64",
        dimensions=fields.integer("dimensions", 1),
        truncate=read_truncation(fields),
        prompt_name=fields.string("prompt_name"),
    )


def read_truncation(fields: Fields) -> int | None:
    """`truncate_prompt_tokens`: -1 for the model's own limit, or the tokens to keep."""
    value = fields.integer("truncate_prompt_tokens", -1)
    if value == 0:
        check_range("truncate_prompt_tokens", "integer", 0, 1, None)
    return value


def read_texts(values: list[object], param: str) -> tuple[str, ...]:
    """Texts of which none is empty; at most `MAX_INPUTS`."""
    check_count(values, param)
    texts = []
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise invalid_type(f"{param}[{place}]", "a string", value)
        texts.append(check_text(value, f"{param}[{place}]"))
    return tuple(texts)


def check_count(values: list[object], param: str) -> None:
    """Raise `ApiError` (400) for an empty array or one of too many elements."""
    if not values:
        raise empty_array(param)
    if len(values) > MAX_INPUTS:
        message = (
            f"Invalid '{param}': array too long. Expected an array with maximum length {MAX_INPUTS}, "
            f"but got an array with length {len(values)} instead."
        )
        raise bad_request(message, param=param, code="array_above_max_length")


def check_text(value: str, param: str) -> str:
    """The text; raises `ApiError` (400) when it is empty."""
    if not value:
        message = f"Invalid '{param}': expected a string with at least one character, but got an empty string."
        raise bad_request(message, param=param, code="empty_string")
    return value


def _read_inputs(fields: Fields) -> tuple[str | tuple[int, ...], ...]:
    value = fields.get("input")
    if value is None:
        fields.required_string("input")  # raises
    if isinstance(value, str):
        return (check_text(value, "input"),)
    if not isinstance(value, list):
        raise invalid_type("input", TYPE_OF_INPUT, value)
    if value and _is_integer(value[0]):
        return (_read_ids(value, "input"),)
    check_count(value, "input")
    return tuple(_read_input(item, f"input[{place}]") for place, item in enumerate(value))


def _read_input(item: object, param: str) -> str | tuple[int, ...]:
    if isinstance(item, str):
        return check_text(item, param)
    if isinstance(item, list):
        return _read_ids(item, param)
    raise invalid_type(param, "one of a string or array of integers", item)


def _read_ids(values: list[object], param: str) -> tuple[int, ...]:
    if not values:
        raise empty_array(param)
    ids = []
    for place, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool):
            raise invalid_type(f"{param}[{place}]", "an integer", value)
        ids.append(value)
    return tuple(ids)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
