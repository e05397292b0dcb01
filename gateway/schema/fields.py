"""Typed reading of one JSON object with OpenAI's error messages. Knows no endpoint and no field name.

`null` means absent everywhere; fields that nobody reads are not its matter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ortserve.gateway.errors import ApiError, bad_request, missing_parameter

TYPE_NAMES: Mapping[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    dict: "an object",
    type(None): "null",
}


def kind(value: object) -> str:
    """A JSON value's type as OpenAI's messages call it."""
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        inner = kinds.pop() if len(kinds) == 1 else type(None)
        name = "an array" if inner is list else TYPE_NAMES[inner]
        return "an array" if inner is type(None) else f"an array of {name.split(' ', 1)[1]}s"
    return TYPE_NAMES[type(value)]


def invalid_type(param: str, expected: str, value: object) -> ApiError:
    """A 400: the JSON type is wrong."""
    message = f"Invalid type for '{param}': expected {expected}, but got {kind(value)} instead."
    return bad_request(message, param=param, code="invalid_type")


def missing(param: str) -> ApiError:
    """A 400: a required field is absent."""
    return missing_parameter(param)


def invalid_value(param: str, value: object, supported: Collection[str]) -> ApiError:
    """A 400: not one of the words allowed here."""
    words = sorted(supported) if isinstance(supported, set | frozenset) else list(supported)
    quoted = [f"'{word}'" for word in words]
    choices = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
    message = f"Invalid value: '{value}'. Supported values are: {choices}."
    return bad_request(message, param=param, code="invalid_value")


def empty_array(param: str) -> ApiError:
    """A 400: at least one element is needed."""
    message = (
        f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an empty array instead."
    )
    return bad_request(message, param=param, code="empty_array")


def check_range(param: str, word: str, value: float, minimum: float | None, maximum: float | None) -> None:
    """Raise a 400 in OpenAI's wording unless minimum <= value <= maximum. `word` is "integer" or "decimal"."""
    if minimum is not None and not value >= minimum:
        side, interval, code = "below minimum", f">= {minimum}", "below_min"
    elif maximum is not None and not value <= maximum:
        side, interval, code = "above maximum", f"<= {maximum}", "above_max"
    else:
        return
    message = f"Invalid '{param}': {word} {side} value. Expected a value {interval}, but got {value} instead."
    raise bad_request(message, param=param, code=f"{word}_{code}_value")


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object and the path that leads to it (`messages[0]`; empty for the body)."""

    data: Mapping[str, object]
    path: str = ""

    def name(self, key: str) -> str:
        """The full path of a field, as errors name it."""
        return f"{self.path}.{key}" if self.path else key

    def get(self, key: str) -> object:
        """The raw value; None when absent or null."""
        return self.data.get(key)

    def has(self, key: str) -> bool:
        """Present with a meaning: neither null nor an empty array."""
        value = self.data.get(key)
        return value is not None and value != []

    def string(self, key: str, *, max_length: int | None = None) -> str | None:
        """A string, or None when absent."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise invalid_type(self.name(key), "a string", value)
        if max_length is not None and len(value) > max_length:
            message = (
                f"Invalid '{self.name(key)}': string too long. Expected a string with maximum length {max_length}, "
                f"but got a string with length {len(value)} instead."
            )
            raise bad_request(message, param=self.name(key), code="string_above_max_length")
        return value

    def required_string(self, key: str) -> str:
        """A string that must be there."""
        value = self.string(key)
        if value is None:
            raise missing(self.name(key))
        return value

    def choice(self, key: str, supported: Sequence[str]) -> str | None:
        """One of a few words, or None when absent."""
        value = self.string(key)
        if value is not None and value not in supported:
            raise invalid_value(self.name(key), value, supported)
        return value

    def boolean(self, key: str, *, default: bool = False) -> bool:
        """A boolean, or the default when absent."""
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise invalid_type(self.name(key), "a boolean", value)
        return value

    def integer(self, key: str, minimum: int | None = None, maximum: int | None = None) -> int | None:
        """An integer in [minimum, maximum], or None when absent."""
        value = self.data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid_type(self.name(key), "an integer", value)
        check_range(self.name(key), "integer", value, minimum, maximum)
        return value

    def number(self, key: str, minimum: float | None = None, maximum: float | None = None) -> float | None:
        """A number in [minimum, maximum] as float, or None when absent."""
        value = self.data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid_type(self.name(key), "a decimal", value)
        check_range(self.name(key), "decimal", value, minimum, maximum)
        return float(value)

    def array(self, key: str, expected: str = "an array") -> list[object] | None:
        """An array of anything, or None when absent."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise invalid_type(self.name(key), expected, value)
        return value

    def objects(self, key: str) -> tuple[Fields, ...] | None:
        """An array of objects, or None when absent."""
        values = self.array(key, "an array of objects")
        if values is None:
            return None
        return tuple(self.element(key, index, value) for index, value in enumerate(values))

    def element(self, key: str, index: int, value: object) -> Fields:
        """One element of an array that must be an object."""
        path = f"{self.name(key)}[{index}]"
        if not isinstance(value, dict):
            raise invalid_type(path, "an object", value)
        return Fields(value, path)

    def object(self, key: str) -> Fields | None:
        """A nested object, or None when absent."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise invalid_type(self.name(key), "an object", value)
        return Fields(value, self.name(key))


def parse_object(body: bytes) -> Fields:
    """The body as one JSON object; raises `ApiError` (400) otherwise.

    Of a name that comes twice the last one counts.
    """
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's errors and invalid UTF-8 are ValueErrors
        reason = str(error) or type(error).__name__
        message = (
            "We could not parse the JSON body of your request. The API expects a JSON payload sent with "
            f"'Content-Type: application/json', but what was sent was not valid JSON: {reason}."
        )
        raise bad_request(message) from None
    if not isinstance(value, dict):
        message = f"Invalid request body: expected a JSON object, but got {kind(value)} instead."
        raise bad_request(message, code="invalid_type")
    return Fields(value)
