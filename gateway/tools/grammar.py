"""What replies that call tools must look like, as Lark in llguidance's dialect. Knows no format and no engine.

A format says how one call is written; here calls become replies: one or several, demanded or only when the model
begins one, beside text or beside another structure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ortserve.gateway.tools.closing import closed
from ortserve.gateway.tools.format import CallLayout, CallWords, ToolFormat, ToolShape

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as models were shown JSON


@dataclass(frozen=True, slots=True)
class CallDemand:
    """Which calls a reply may have. With `is_required` it is calls and nothing else, otherwise it may be text.

    `otherwise` is the Lark of what a reply without calls must be, None for any text.
    """

    tools: tuple[ToolShape, ...]
    is_required: bool
    is_parallel: bool
    otherwise: str | None = None


def call_grammar(format_: ToolFormat, demand: CallDemand) -> str:
    """A Lark grammar whose rules `marker_N` are the format's markers. Raises `UnwritableError`."""
    words = CallWords(format_.markers)
    rules = []
    for place, tool in enumerate(demand.tools):
        rules.append(f"call_{place}: {format_.write_call(tool, words, f'arguments_{place}')}")
        rules.append(f"arguments_{place}: {json_rule(closed(tool.parameters))}")
    calls = " | ".join(f"call_{place}" for place in range(len(demand.tools)))
    start = _start(format_.layout, words, demand)
    return "\n".join([f"start: {start}", f"call: {calls}", *rules, *words.rules, FREE])


FREE = "FREE: /[^\\s{\\[`](?s:.*)/"  # of formats without a marker: text that does not begin as calls do


def _start(layout: CallLayout, words: CallWords, demand: CallDemand) -> str:
    if layout.opener is None:
        calls = _joined(words.text(layout.before), _several("call", words, layout, demand), words.text(layout.after))
        return calls if demand.is_required else f"({calls}) | ({demand.otherwise or 'FREE?'})"
    place = words.place(layout.opener)
    if demand.is_required or demand.otherwise is not None:
        begun = _begun(f"marker_{place}", words, layout, demand)
        return begun if demand.is_required else f"({begun}) | ({demand.otherwise})"
    calls = _begun(f"until_marker_{place}", words, layout, demand, is_free=True)
    return f"{calls} without_marker_{place}"


def _begun(opening: str, words: CallWords, layout: CallLayout, demand: CallDemand, *, is_free: bool = False) -> str:
    """Calls from their opener on; with `is_free` perhaps none, and text between those with openers of their own."""
    if layout.is_opener_repeated:
        if is_free:
            return f"({opening} call)" + ("*" if demand.is_parallel else "?")
        return _several(f"{opening} call", words, layout, demand)
    calls = _several("call", words, layout, demand)
    whole = _joined(opening, words.text(layout.before), calls, words.text(layout.after))
    return f"({whole})?" if is_free else whole


def _several(one: str, words: CallWords, layout: CallLayout, demand: CallDemand) -> str:
    return f"{one} ({_joined(words.text(layout.between), one)})*" if demand.is_parallel else one


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def json_rule(schema: Mapping[str, object]) -> str:
    """JSON that is valid by a schema, spaced as templates space it. What cannot be enforced is refused."""
    options = {**SPACING, "lenient": False, "coerce_one_of": False}
    return "%json " + json.dumps({"type": "object", **schema, "x-guidance": options})


def text_rule(schema: Mapping[str, object]) -> str:
    """The same for a value of any type."""
    options = {**SPACING, "lenient": False, "coerce_one_of": False}
    return "%json " + json.dumps({**schema, "x-guidance": options})


EachMember = Callable[[str, Mapping[str, object]], str]


def members(schema: Mapping[str, object], separator: str, write: EachMember) -> str:
    """The properties of an object schema in order, optional ones where `required` does not name them, as Lark.

    `write` gives the Lark of one name and value. `separator` is Lark between two.
    """
    properties = schema.get("properties")
    required = schema.get("required")
    names = set(required) if isinstance(required, list) else set()
    written = [
        (name, write(name, _with_definitions(inner, schema)), name in names)
        for name, inner in (properties.items() if isinstance(properties, dict) else ())
        if isinstance(inner, dict)
    ]
    if not separator:
        return " ".join(text if needed else f"({text})?" for _, text, needed in written) or '""'
    return _separated(written, separator)


def _separated(written: Sequence[tuple[str, str, bool]], separator: str) -> str:
    """Members with separators between those that are there: every first one, then the others as they are needed."""
    if not written:
        return '""'
    chains = []
    for first, (_, text, needed) in enumerate(written):
        rest = " ".join(
            f"{separator} {other}" if needs else f"({separator} {other})?" for _, other, needs in written[first + 1 :]
        )
        chains.append(f"{text} {rest}")
        if needed:
            break
    else:
        chains.append('""')
    return "(" + " | ".join(chains) + ")"


def _with_definitions(inner: Mapping[str, object], schema: Mapping[str, object]) -> Mapping[str, object]:
    kept = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return {**kept, **inner} if kept else inner


def whole(pattern: str) -> str:
    """A schema's pattern, which is looked for, as an expression of a Lark grammar, which matches whole texts."""
    start = "" if pattern.startswith("^") else "(?s:.*)"
    end = "" if pattern.endswith("$") else "(?s:.*)"
    inner = pattern.removeprefix("^").removesuffix("$").replace("/", "\\/")
    return f"{start}(?:{inner}){end}"
