"""Field tables as JSON Schemas of whole bodies. Knows no endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from ortserve.gateway.request_fields.rules import Rule, Verdict
from ortserve.gateway.request_fields.table import FieldTable


def body_shape(table: FieldTable) -> dict[str, Any]:
    """What a request may send. Refused fields are left out, ignored ones are marked with `x-ortserve-verdict`.

    Unknown fields are accepted, so nothing says `additionalProperties: false`.
    """
    root: dict[str, Any] = {"type": "object", "properties": {}}
    for rule in table.rules:
        if rule.verdict is Verdict.REFUSED and not rule.neutral:
            continue
        for holder in _holders(root, rule.path.split(".")[:-1]):
            name = rule.path.rpartition(".")[2].removesuffix("[]")
            holder.setdefault("properties", {})[name] = _property(rule)
            if rule.is_required:
                holder.setdefault("required", []).append(name)
    return root


def _property(rule: Rule) -> dict[str, Any]:
    shape: dict[str, Any] = deepcopy(dict(rule.shape))
    if rule.verdict is Verdict.REFUSED:
        shape = {"enum": [*rule.neutral]}
    if not rule.is_required:
        shape = {"anyOf": [shape, {"type": "null"}]} if shape else shape
    if rule.note:
        shape["description"] = rule.note
    if rule.verdict is not Verdict.HONOURED:
        shape["x-ortserve-verdict"] = str(rule.verdict)
    if rule.is_extension:
        shape["x-ortserve-extension"] = True
    return shape


def _holders(root: dict[str, Any], parts: list[str]) -> list[dict[str, Any]]:
    """The object schemas at a path: a field may be one of several things."""
    found = [root]
    for part in parts:
        found = [
            inner
            for shape in found
            for inner in _objects(shape.get("properties", {}).get(part.removesuffix("[]"), {}), in_array="[]" in part)
        ]
    return found


def _objects(shape: Mapping[str, Any], *, in_array: bool) -> list[dict[str, Any]]:
    if "anyOf" in shape:
        return [inner for option in shape["anyOf"] for inner in _objects(option, in_array=in_array)]
    if in_array:
        return _objects(shape["items"], in_array=False) if shape.get("type") == "array" else []
    return [shape] if shape.get("type") == "object" and isinstance(shape, dict) else []
