"""Invented tools: their signatures, wishes in words and the arguments a wish amounts to; asks nothing itself."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from . import words

Maker = Callable[[random.Random], object]


def random_number(rng: random.Random) -> object:
    return rng.randint(0, 9) if rng.random() < 0.4 else rng.randint(0, 999)


def random_text(rng: random.Random) -> object:
    return " ".join(words.word(rng) for _ in range(rng.randint(1, 4)))


def random_date(rng: random.Random) -> object:
    return f"{rng.randint(1990, 2035)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter: its possible names, its JSON type, how it is said and how values are made."""

    names: tuple[str, ...]
    kind: str
    phrases: tuple[str, ...]
    make: Maker


PLACE = Slot(("city", "location", "place", "town", "where"), "string", ("in {v}", "for {v}", "near {v}"), words.city)
PERSON = Slot(
    ("name", "person", "recipient", "user", "to", "contact", "customer"),
    "string",
    ("to {v}", "for {v}"),
    words.first_name,
)
TOPIC = Slot(
    ("query", "text", "topic", "title", "subject", "message", "q", "keyword"),
    "string",
    ("about {v}", 'with the text "{v}"', 'saying "{v}"'),
    random_text,
)
AMOUNT = Slot(
    ("amount", "count", "number", "limit", "quantity", "value", "n"),
    "integer",
    ("with {p} {v}", "and set {p} to {v}"),
    random_number,
)
IDENTIFIER = Slot(
    ("id", "code", "order_id", "ticket", "sku", "key"), "string", ("with {p} {v}", "number {v}"), words.code_string
)
DATE = Slot(("date", "day", "when", "start_date"), "string", ("on {v}", "for {v}"), random_date)
COLOUR = Slot(
    ("color", "colour", "shade"), "string", ("in {v}", "with colour {v}"), lambda rng: rng.choice(words.COLOURS)
)
SLOTS = (PLACE, PERSON, TOPIC, AMOUNT, IDENTIFIER, DATE, COLOUR)

# (verb, object) pairs make the names; the object also decides which slot comes first.
VERBS = (
    "get",
    "find",
    "search",
    "fetch",
    "lookup",
    "check",
    "show",
    "book",
    "create",
    "send",
    "order",
    "delete",
    "update",
    "add",
    "set",
    "open",
    "start",
    "cancel",
    "read",
    "list",
)
OBJECTS: tuple[tuple[str, Slot], ...] = (
    ("weather", PLACE),
    ("forecast", PLACE),
    ("time", PLACE),
    ("map", PLACE),
    ("temperature", PLACE),
    ("hotel", PLACE),
    ("flight", PLACE),
    ("restaurant", PLACE),
    ("email", PERSON),
    ("message", PERSON),
    ("invoice", PERSON),
    ("profile", PERSON),
    ("payment", PERSON),
    ("contact", PERSON),
    ("news", TOPIC),
    ("note", TOPIC),
    ("article", TOPIC),
    ("document", TOPIC),
    ("recipe", TOPIC),
    ("web", TOPIC),
    ("timer", AMOUNT),
    ("volume", AMOUNT),
    ("score", AMOUNT),
    ("ticket", IDENTIFIER),
    ("order", IDENTIFIER),
    ("parcel", IDENTIFIER),
    ("account", IDENTIFIER),
    ("meeting", DATE),
    ("event", DATE),
    ("reminder", DATE),
    ("lamp", COLOUR),
    ("paint", COLOUR),
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A signature and the phrases that fill it."""

    name: str
    verb: str
    thing: str
    slots: tuple[tuple[str, Slot], ...]
    text: str


def _tool(rng: random.Random) -> Tool:
    thing, first = rng.choice(OBJECTS)
    if rng.random() < 0.2:
        thing, first = words.invented(rng), rng.choice(SLOTS)
    verb = rng.choice(VERBS)
    joint = rng.choice(("_", "_", "_", "-", "camel", "current"))
    name = {
        "camel": f"{verb}{thing.capitalize()}",
        "current": f"{verb}_{rng.choice(('current', 'my', 'new', 'the', 'user'))}_{thing}",
    }.get(joint, f"{verb}{joint}{thing}")
    others = [slot for slot in SLOTS if slot is not first]
    chosen = (first, *rng.sample(others, rng.choice((0, 0, 0, 1, 1, 2))))
    named: dict[str, Slot] = {}
    for slot in chosen:
        parameter = rng.choice(slot.names) if rng.random() < 0.85 else words.invented(rng)
        named.setdefault(parameter, slot)
    described = rng.random() < 0.4
    properties: dict[str, object] = {}
    for parameter, slot in named.items():
        schema = {"type": slot.kind}
        if described:
            schema["description"] = rng.choice(
                (f"The {parameter}", f"the {parameter} to use", f"{parameter.capitalize()} of the {thing}")
            )
        properties[parameter] = schema
    description = rng.choice(
        (
            f"{verb.capitalize()} the {thing}",
            f"{verb.capitalize()} a {thing}.",
            f"{verb.capitalize()}s {thing} data",
            f"Use this to {verb} the {thing}.",
        )
    )
    parameters: dict[str, object] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        parameters["required"] = list(named)
    if rng.random() < 0.15:
        parameters["additionalProperties"] = False
    function: dict[str, object] = {"name": name, "description": description, "parameters": parameters}
    if rng.random() < 0.1:
        del function["description"]
    signature = {"type": "function", "function": function}
    # Clients send keys in any order, and some template engines sort them.
    text = json.dumps(signature, sort_keys=rng.random() < 0.3, ensure_ascii=False)
    return Tool(name, verb, thing, tuple(named.items()), text)


def wish_clause(rng: random.Random, tool: Tool) -> tuple[str, dict[str, object]]:
    """One wish for the tool in words, and the arguments it amounts to."""
    arguments: dict[str, object] = {}
    phrases: list[str] = []
    for parameter, slot in tool.slots:
        value = slot.make(rng)
        arguments[parameter] = value
        phrase = rng.choice(slot.phrases)
        phrases.append(phrase.format(v=value, p=parameter.replace("_", " ")))
    article = rng.choice(("the", "a", "my", "the"))
    return f"{tool.verb} {article} {tool.thing} {' '.join(phrases)}", arguments


def call_text(tool: Tool, arguments: dict[str, object]) -> str:
    body = json.dumps({"name": tool.name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def wish(rng: random.Random, tool: Tool, clause: str) -> str:
    if (
        tool.verb in ("get", "find", "check", "show", "fetch", "lookup", "read", "list", "search")
        and rng.random() < 0.4
    ):
        rest = clause.split(" ", 2)[2]
        return rng.choice(
            (
                f"What is the {rest}?",
                f"What's the {rest}?",
                f"I would like to know the {rest}.",
                f"How is the {rest}?",
                f"Tell me the {rest}.",
                f"What is the {rest} like?",
            )
        )
    sentence = clause[0].upper() + clause[1:]
    return rng.choice(
        (
            f"{sentence}.",
            f"{sentence}",
            f"Please {clause}.",
            f"Can you {clause}?",
            f"I want you to {clause}.",
            f"Could you {clause}, please?",
            f"I need you to {clause}.",
            f"Use {tool.name} to {clause}.",
        )
    )


def distinct_tools(rng: random.Random, num_tools: int) -> list[Tool]:
    tools: list[Tool] = []
    while len(tools) < num_tools:
        tool = _tool(rng)
        if all(tool.thing != other.thing for other in tools):
            tools.append(tool)
    return tools
