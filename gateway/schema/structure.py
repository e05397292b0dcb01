"""What a reply must look like, as `response_format` and the extensions of other servers say it. Knows no engine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from ortserve.gateway.errors import ApiError, bad_request, unsupported_parameter
from ortserve.gateway.schema.fields import Fields, invalid_type, invalid_value, missing
from ortserve.runtime.errors import RequestError
from ortserve.runtime.request import Grammar, GrammarKind

MAX_NAME_LENGTH = 64
MAX_GUIDED_CHOICES = 1024
FORMAT_TYPES = ("text", "json_object", "json_schema")
# One of them at a time, and none beside a `response_format` that is not text.
GUIDED_FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
# The same by names that other servers gave them; here they would be a second way to say it.
FOREIGN_FIELDS = ("structured_outputs", "grammar", "json_schema")
_NAME = re.compile(r"[a-zA-Z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Structure:
    """A grammar and the request's field it came from, which errors name."""

    grammar: Grammar
    param: str

    def after(self, marker: str) -> Structure:
        """The same once `marker` has been said, such as the end of a reasoning channel or a tool call's opening tag.

        Before it anything may be said, so the reply cannot end before it either.
        """
        return replace(self, grammar=replace(self.grammar, after=marker))

    def refusal(self, error: RequestError) -> ApiError:
        """A 400: the engine's grammar library cannot use it."""
        return bad_request(f"Invalid '{self.param}': {error}.", param=self.param, code="invalid_grammar")


def schema_structure(schema: Mapping[str, object], param: str) -> Structure:
    """JSON that is valid by a schema."""
    return Structure(Grammar(GrammarKind.JSON_SCHEMA, msgspec.json.encode(schema).decode()), param)


def object_structure(param: str) -> Structure:
    """Any JSON object."""
    return schema_structure({"type": "object"}, param)


def regex_structure(pattern: str, param: str) -> Structure:
    """Text that matches a regular expression as a whole."""
    return Structure(Grammar(GrammarKind.REGEX, pattern), param)


def lark_structure(grammar: str, param: str) -> Structure:
    """Text that a Lark grammar (llguidance's dialect, with a `start` rule) derives."""
    return Structure(Grammar(GrammarKind.LARK, grammar), param)


def choice_structure(choices: Sequence[str], param: str) -> Structure:
    """One of a few texts."""
    rules = " | ".join(msgspec.json.encode(choice).decode() for choice in choices)
    return Structure(Grammar(GrammarKind.LARK, f"start: {rules}"), param)


def read_structure(fields: Fields) -> Structure | None:
    """What the reply must look like, None for plain text. A 400 for two constraints at once."""
    for key in FOREIGN_FIELDS:
        if fields.has(key):
            raise unsupported_parameter(key, f"is not a name for it here: use one of {', '.join(GUIDED_FIELDS)}.")
    found = _read_response_format(fields)
    for key in GUIDED_FIELDS:
        if not fields.has(key):
            continue
        if found is not None:
            message = f"Invalid '{key}': a reply can have one constraint only, and '{found.param}' is another."
            raise bad_request(message, param=key, code="invalid_value")
        found = _read_guided(fields, key)
    return found


def refuse_structure(fields: Fields) -> None:
    """A 400 for any of these fields, on an endpoint that has a name of its own for them."""
    for key in (*GUIDED_FIELDS, *FOREIGN_FIELDS):
        if fields.has(key):
            raise unsupported_parameter(key, "is not supported by this endpoint.")


def _read_response_format(fields: Fields) -> Structure | None:
    response_format = fields.object("response_format")
    if response_format is None:
        return None
    if response_format.get("type") != "json_schema":
        return read_flat_format(response_format)
    wanted = response_format.object("json_schema")
    if wanted is None:
        raise missing("response_format.json_schema")
    return _read_json_schema(wanted)


def read_flat_format(fields: Fields) -> Structure | None:
    """A format whose schema lies beside its type, as in `text.format` of the Responses API."""
    kind = fields.required_string("type")
    if kind not in FORMAT_TYPES:
        raise invalid_value(fields.name("type"), kind, FORMAT_TYPES)
    if kind == "json_object":
        return object_structure(fields.path)
    return _read_json_schema(fields) if kind == "json_schema" else None


def _read_json_schema(fields: Fields) -> Structure:
    """`name`, `schema`, `strict` and `description`. A schema is enforced whether strict or not."""
    name = fields.required_string("name")
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        param = fields.name("name")
        message = (
            f"Invalid '{param}': expected 1 to {MAX_NAME_LENGTH} letters, digits, underscores or dashes, "
            f"but got '{name[:MAX_NAME_LENGTH]}'."
        )
        raise bad_request(message, param=param, code="invalid_value")
    fields.boolean("strict")
    fields.string("description")
    schema = fields.object("schema")
    if schema is None:
        raise missing(fields.name("schema"))
    return schema_structure(schema.data, fields.name("schema"))


def _read_guided(fields: Fields, key: str) -> Structure:
    if key == "guided_json":
        schema = fields.object(key)
        assert schema is not None
        return schema_structure(schema.data, key)
    if key == "guided_choice":
        return _read_choices(fields, key)
    text = fields.required_string(key)
    return regex_structure(text, key) if key == "guided_regex" else lark_structure(text, key)


def _read_choices(fields: Fields, key: str) -> Structure:
    values = fields.array(key, "an array of strings") or []
    if len(values) > MAX_GUIDED_CHOICES:
        message = (
            f"Invalid '{key}': array too long. Expected an array with maximum length {MAX_GUIDED_CHOICES}, "
            f"but got an array with length {len(values)} instead."
        )
        raise bad_request(message, param=key, code="array_above_max_length")
    choices: list[str] = []
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise invalid_type(f"{key}[{index}]", "a string", value)
        if not value:
            message = f"Invalid '{key}[{index}]': an empty text cannot be chosen."
            raise bad_request(message, param=f"{key}[{index}]", code="invalid_value")
        choices.append(value)
    return choice_structure(choices, key)
