"""Tool calls and answers from tool results; knows neither chat layout nor how tools are invented."""

from __future__ import annotations

import json
import random

from . import words
from .family_chat import chat
from .family_facts import fact
from .family_numbers import arithmetic
from .sample import Message, Sample
from .toolbox import call_text, distinct_tools, random_number, random_text, wish, wish_clause


def call_tool(rng: random.Random) -> Sample:
    """Call the tool that fits, twice if two things are wished for; answer in words when none fits."""
    tools = distinct_tools(rng, rng.choice((1, 1, 2, 2, 3)))
    texts = tuple(tool.text for tool in tools)
    if rng.random() < 0.18:
        plain = rng.choice((chat, arithmetic, fact))(rng)
        return Sample(
            "tool call", plain.messages, plain.answer, (*(f"tool|{tool.name}" for tool in tools), *plain.keys), texts
        )
    tool = rng.choice(tools)
    clause, arguments = wish_clause(rng, tool)
    question, answer = wish(rng, tool, clause), call_text(tool, arguments)
    if rng.random() < 0.15:
        if rng.random() < 0.6:
            other, (second, more) = tool, wish_clause(rng, tool)
        else:
            other = rng.choice(tools)
            second, more = wish_clause(rng, other)
        question = f"{clause[0].upper()}{clause[1:]} and {rng.choice(('also ', 'then ', ''))}{second}."
        answer = f"{answer}\n{call_text(other, more)}"
    keys = (*(f"tool|{each.name}" for each in tools if each is not tool), f"tool|{tool.name}")
    return Sample("tool call", (Message("user", question),), answer, keys, texts, "calls")


RESULT_KEYS = (
    "temperature",
    "condition",
    "price",
    "status",
    "time",
    "date",
    "score",
    "distance",
    "humidity",
    "stock",
    "name",
    "address",
    "phone",
    "total",
    "delay",
    "rating",
)


def _result(rng: random.Random) -> tuple[str, str]:
    """What a tool returned, and how to say it."""
    kind = rng.random()
    if kind < 0.1:
        text = words.sentence(rng)
        return text, text
    if kind < 0.2:
        reason = " ".join(words.word(rng) for _ in range(rng.randint(1, 4)))
        return json.dumps({"error": reason}, ensure_ascii=False), f"The tool reported an error: {reason}."
    if kind < 0.3:
        value = str(random_number(rng))
        return value, f"The result is {value}."
    keys = rng.sample(RESULT_KEYS, rng.randint(1, 4))
    if rng.random() < 0.3:
        keys = list(dict.fromkeys([*keys[:-1], words.invented(rng)]))
    row = {key: rng.choice((random_number, random_text, words.city, words.code_string))(rng) for key in keys}
    parts = [f"the {key} is {value}" for key, value in row.items()]
    said = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return json.dumps(row, ensure_ascii=False), said[0].upper() + said[1:] + "."


def use_result(rng: random.Random) -> Sample:
    """Say in words what a tool returned."""
    tool, *others = distinct_tools(rng, rng.choice((1, 1, 2, 3)))
    clause, arguments = wish_clause(rng, tool)
    content, answer = _result(rng)
    messages = (
        Message("user", wish(rng, tool, clause)),
        Message("assistant", call_text(tool, arguments)),
        Message("tool", content),
    )
    offered = [tool, *others]
    rng.shuffle(offered)
    keys = (*(f"tool|{each.name}" for each in offered), f"result|{content}")
    return Sample("tool result", messages, answer, keys, tuple(each.text for each in offered))
