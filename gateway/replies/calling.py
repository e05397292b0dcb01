"""What a request demands of its calls, as the structure that the engine enforces. Knows no wire format, no engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ortserve.gateway.errors import bad_request
from ortserve.gateway.prompts.reasoning import ReasoningFormat
from ortserve.gateway.schema.structure import Structure, lark_structure
from ortserve.gateway.schema.tools import Tool, ToolMode, ToolUse
from ortserve.gateway.tools.format import ToolFormat, ToolShape, UnwritableError, raw_input
from ortserve.gateway.tools.grammar import CallDemand, call_grammar, text_rule
from ortserve.runtime.request import Grammar, GrammarKind


@dataclass(frozen=True, slots=True)
class Calling:
    """The tools of one request, the format of the model, and what a reply without calls must be."""

    tools: ToolUse
    format: ToolFormat
    is_parallel: bool
    otherwise: Structure | None = None

    @property
    def is_constrained(self) -> bool:
        """Anything of it needs a grammar: calls that are demanded, limited or strict, or a structure beside them."""
        tools = self.tools.callable_tools
        if not tools:
            return False
        return (
            self.tools.mode is ToolMode.REQUIRED
            or self.tools.allowed is not None
            or self.otherwise is not None
            or any(tool.is_constrained for tool in tools)
        )

    def structure(self, *, is_loose: bool = False) -> Structure:
        """The whole as one grammar; with `is_loose` tools that are not strict may get any arguments.

        Raises `ApiError` (400) for a tool that the model's format cannot be held to.
        """
        shapes = tuple(_shape(tool, is_loose=is_loose) for tool in self.tools.callable_tools)
        required = self.tools.mode is ToolMode.REQUIRED
        demand = CallDemand(
            shapes,
            is_required=required,
            is_parallel=self.is_parallel and not self.tools.is_named,
            otherwise=None if self.otherwise is None or required else _lark(self.otherwise),
        )
        try:
            text = call_grammar(self.format, demand)
        except UnwritableError as error:
            message = f"Invalid '{self.param}': {error}, as this model writes calls."
            raise bad_request(message, param=self.param, code="invalid_function_parameters") from None
        return Structure(Grammar(GrammarKind.LARK, text, markers=self.format.markers), self.param)

    @property
    def param(self) -> str:
        """The request's field with the tools."""
        return "functions" if self.tools.is_legacy else "tools"

    def culprits(self) -> Sequence[Structure]:
        """Every tool's own part as a structure of its own, named as errors should name it."""
        found = []
        for place, tool in enumerate(self.tools.tools):
            if tool.grammar is not None and tool.grammar.syntax == "lark":
                param = f"{self.param}[{place}].custom.format.grammar.definition"
                found.append(lark_structure(tool.grammar.definition, param))
            elif tool.is_constrained:
                inner = "" if self.tools.is_legacy else ".custom" if tool.is_custom else ".function"
                key = "format.grammar.definition" if tool.is_custom else "parameters"
                schema = {"type": "object", **tool.shape.parameters}
                param = f"{self.param}[{place}]{inner}.{key}"
                found.append(Structure(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)), param))
        return found


def after_reasoning(structure: Structure, reasoning: ReasoningFormat | None, *, is_open: bool) -> Structure:
    """The same once the model has reasoned, which it may do first where its prompt has not begun the channel."""
    if reasoning is None:
        return structure
    opener = "" if is_open else reasoning.opener
    return replace(structure, grammar=replace(structure.grammar, after=reasoning.closer, opener=opener))


def _shape(tool: Tool, *, is_loose: bool) -> ToolShape:
    if is_loose and not tool.is_constrained:
        return ToolShape(tool.name, {"type": "object"})
    return tool.shape


def _lark(structure: Structure) -> str:
    """A structure as a part of a Lark grammar."""
    grammar = structure.grammar
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return text_rule(json.loads(grammar.text))
        case GrammarKind.REGEX:
            return "/" + grammar.text.replace("/", "\\/") + "/"
        case GrammarKind.LARK:
            return raw_input(grammar.text)
