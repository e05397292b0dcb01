"""What a reply must look like, as the gateway's nouns speak of it. Knows no wire format of a request and no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from ortserve.gateway.errors import ApiError, bad_request
from ortserve.runtime.errors import RequestError
from ortserve.runtime.request import Grammar, GrammarKind


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
