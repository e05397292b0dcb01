"""What of a JSON schema takes the compiler of grammars exponential time, counted before it is asked. Knows no library.

Automata are intersected where several conditions on a text or a number meet in one value: the time doubles with each.
Remainders are states: a `multipleOf` has as many as it is large, but for factors of 10, which the last digits tell.
Patterns of names are compared with each other. No fuel bounds any of these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import isfinite, lcm
from typing import TypeAlias

from ortserve.runtime.grammar.schema_references import resolved

MAX_MEETING = 8  # conditions on one value
MAX_REMAINDERS = 20_000
MAX_NAME_PATTERNS = 64  # of one object
MAX_LOOKS = 100_000  # at a schema, for each value that must satisfy it
MAX_NESTING = 32  # of choices within choices; deeper ones count as if all held
_CONDITIONS = ("pattern", "format", "multipleOf")
_IN_PLACE = ("if", "then", "else", "not")
_ALTERNATIVES = ("anyOf", "oneOf")

Group: TypeAlias = list[dict[str, object]]  # the schemas that one value must satisfy


def excessive_work(schema: object) -> str | None:
    """Why it is too much work to follow a schema; None where it is not."""
    waiting: list[list[object]] = [[schema]]  # what one value must satisfy together
    seen: set[frozenset[int]] = set()
    num_looks = 0
    while waiting:
        for group in _branches(waiting.pop(), schema):
            key = frozenset(map(id, group))
            if key in seen:
                continue
            seen.add(key)
            num_looks += len(group)
            if num_looks > MAX_LOOKS:
                return "too many combinations of its schemas meet in one value"
            reason = _excess(group)
            if reason is not None:
                return reason
            waiting += _inner(group)
    return None


def _branches(schemas: Sequence[object], root: object) -> Iterator[Group]:
    """All that holds for one value, once for each alternative; several choices at once count as if all held."""
    group, choices = _flattened(schemas, root)
    return _chosen(group, choices, root, frozenset())


def _chosen(group: Group, choices: list[list[object]], root: object, made: frozenset[int]) -> Iterator[Group]:
    choices = [choice for choice in choices if id(choice) not in made]
    made |= set(map(id, choices))
    if not choices:
        yield group
    elif len(choices) == 1 and len(made) <= MAX_NESTING:
        for alternative in choices[0]:
            own, more = _flattened([alternative], root)
            yield from _chosen([*group, *own], more, root, made)
    else:
        own, more = _flattened([one for choice in choices for one in choice], root)
        yield from _chosen([*group, *own], more, root, made)


def _flattened(schemas: Sequence[object], root: object) -> tuple[Group, list[list[object]]]:
    """The schemas and those in the same place, references followed; and lists of which one must hold."""
    group: Group = []
    choices: list[list[object]] = []
    waiting, seen = list(schemas), set[int]()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        group.append(one)
        reference = one.get("$ref")
        if isinstance(reference, str):
            waiting.append(resolved(root, reference))
        waiting += (one[key] for key in _IN_PLACE if key in one)
        waiting += _listed(one.get("allOf"))
        for key in _ALTERNATIVES:
            alternatives = _listed(one.get(key))
            if len(alternatives) > 1:
                choices.append(alternatives)
            else:
                waiting += alternatives
    return group, choices


def _excess(group: Group) -> str | None:
    met = {(key, json.dumps(one[key], sort_keys=True)) for one in group for key in _CONDITIONS if key in one}
    if len(met) > MAX_MEETING:
        return f"{len(met)} of {', '.join(_CONDITIONS)} meet in one value, and at most {MAX_MEETING} are followed"
    num_patterns = sum(len(_named(one.get("patternProperties"))) for one in group)
    if num_patterns > MAX_NAME_PATTERNS:
        return f"an object has {num_patterns} 'patternProperties', and at most {MAX_NAME_PATTERNS} are followed"
    if _num_remainders(group) > MAX_REMAINDERS:
        return f"a 'multipleOf' of more than {MAX_REMAINDERS}, trailing zeros apart, is not followed"
    return None


def _num_remainders(group: Group) -> int:
    """Of the least common multiple of all `multipleOf`, as digits without a point."""
    steps = [Fraction(str(step)) for one in group if _is_step(step := one.get("multipleOf"))]
    if not steps:
        return 1
    scale = lcm(*(step.denominator for step in steps))
    multiple = lcm(*(int(step * scale) for step in steps))
    while multiple and multiple % 10 == 0:
        multiple //= 10
    return multiple


def _is_step(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0


def _inner(group: Group) -> Iterator[list[object]]:
    """What must hold for each property, for other names, and for items: of all schemas of the group together."""
    properties = [_named(one.get("properties")) for one in group]
    others = [one.get("additionalProperties") for one in group]
    for name in dict.fromkeys(name for own in properties for name in own):
        yield [own.get(name, other) for own, other in zip(properties, others, strict=True)]
    patterns = [_named(one.get("patternProperties")) for one in group]
    for name in dict.fromkeys(name for own in patterns for name in own):
        yield [own.get(name, other) for own, other in zip(patterns, others, strict=True)]
    yield others
    items = [one.get("items") for one in group]
    places = [_listed(one.get("prefixItems")) for one in group]
    for place in range(max(map(len, places), default=0)):
        yield [own[place] if place < len(own) else rest for own, rest in zip(places, items, strict=True)]
    yield items
    yield [one.get("contains") for one in group]


def _named(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []
