"""The field tables as Markdown, for gateway/README.md.

  python -m ortserve.gateway.documentation.markdown gateway/README.md

writes them into the page, between its two marks. Knows no rule by name.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ortserve.gateway.request_fields.endpoints import BODIES
from ortserve.gateway.request_fields.rules import Rule, Verdict
from ortserve.gateway.request_fields.shapes import Shape
from ortserve.gateway.request_fields.table import FieldTable

BEGIN, END = "<!-- fields -->", "<!-- end of fields -->"


def tables() -> str:
    """One section per kind of body."""
    sections: list[str] = []
    done: list[FieldTable] = []
    for body in BODIES:
        if body.table in done:
            continue
        done.append(body.table)
        paths = [f"`{other.path}`" for other in BODIES if other.table is body.table]
        sections.append(f"### {' and '.join(paths)}\n\n{_table(body.table.rules)}")
    return "\n\n".join(sections)


def with_tables(page: str) -> str:
    """The page with the tables as they are now. Raises `ValueError` for a page without the marks."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def describe(shape: Shape) -> str:
    """A few words for a JSON Schema."""
    if "anyOf" in shape:
        options = shape["anyOf"]
        assert isinstance(options, list)
        return " or ".join(dict.fromkeys(map(describe, options)))
    if "enum" in shape:
        values = shape["enum"]
        assert isinstance(values, list)
        return ", ".join(f"`{value}`" for value in values)
    if shape.get("type") == "array":
        items = shape["items"]
        assert isinstance(items, dict)
        size = _bounds(shape, "minItems", "maxItems").strip()
        return f"array{f' ({size})' if size else ''} of {describe(items)}"
    name = str(shape.get("type", "anything"))
    return f"{name}{_bounds(shape, 'minimum', 'maximum')}{_bounds(shape, 'minLength', 'maxLength')}"


def _bounds(shape: Shape, low: str, high: str) -> str:
    if low in shape and high in shape:
        return f" {shape[low]}..{shape[high]}"
    if low in shape:
        return f" >= {shape[low]}"
    return f" <= {shape[high]}" if high in shape else ""


def _table(rules: Sequence[Rule]) -> str:
    lines = ["| field | type | verdict | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{rule.path}` | {_cell(describe(rule.shape))} | {_verdict(rule)} | {_cell(rule.note)} |" for rule in rules
    ]
    return "\n".join(lines)


def _verdict(rule: Rule) -> str:
    verdict = "required" if rule.is_required else str(rule.verdict)
    if rule.verdict is not Verdict.HONOURED and rule.neutral:
        verdict += f", but for {', '.join(f'`{json.dumps(value)}`' for value in rule.neutral)}"
    return f"{verdict} (extension)" if rule.is_extension else verdict


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def main() -> int:
    """Rewrite the page named on the command line."""
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
