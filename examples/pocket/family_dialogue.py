"""Conversations of several turns: mixed questions, things to remember, earlier turns; invents no family."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from . import words
from .family_chat import chat
from .family_extract import extract
from .family_facts import fact
from .family_numbers import arithmetic, counting
from .family_stories import story
from .family_text import edit, repeat, retrieve, reverse
from .sample import Message, Sample

Family = Callable[[random.Random], Sample]
PARTS: tuple[Family, ...] = (
    chat,
    chat,
    arithmetic,
    arithmetic,
    fact,
    fact,
    repeat,
    edit,
    reverse,
    retrieve,
    counting,
    extract,
    story,
)
LARGEST_FOLLOW_UP = 50
REMEMBERED = (
    "favourite colour",
    "favourite food",
    "favourite animal",
    "name",
    "dog",
    "cat",
    "job",
    "home town",
    "lucky number",
    "password",
    "best friend",
    "sister",
)


def _told(rng: random.Random) -> tuple[str, str, str, str, str]:
    """Something the user tells: key, statement, reply, later question and its answer."""
    thing = rng.choice(REMEMBERED)
    makers: dict[str, Callable[[random.Random], str]] = {
        "favourite colour": lambda r: r.choice(words.COLOURS),
        "favourite food": lambda r: r.choice(words.FOODS),
        "favourite animal": lambda r: r.choice(words.ANIMALS),
        "job": lambda r: r.choice(words.JOBS),
        "home town": words.city,
        "lucky number": lambda r: str(r.randint(1, 999)),
        "password": words.code_string,
    }
    value = makers.get(thing, words.first_name)(rng)
    if thing == "name":
        statement = rng.choice(
            (
                f"My name is {value}.",
                f"I am called {value}.",
                f"Hello, my name is {value}.",
                f"Hi, I'm {value}.",
                f"You can call me {value}.",
                f"my name is {value}",
            )
        )
        question = rng.choice(
            (
                "What is my name?",
                "Do you remember my name?",
                "What am I called?",
                "Who am I?",
                "what's my name?",
                "Tell me my name.",
            )
        )
        return f"{thing}{value}", statement, f"Nice to meet you, {value}!", question, f"Your name is {value}."
    statement = rng.choice(
        (
            f"My {thing} is {value}.",
            f"Remember that my {thing} is {value}.",
            f"Please remember: my {thing} is {value}.",
            f"By the way, my {thing} is {value}.",
        )
    )
    question = rng.choice(
        (
            f"What is my {thing}?",
            f"Do you remember my {thing}?",
            f"Tell me my {thing}.",
            f"What did I say my {thing} was?",
            f"Which {thing} did I tell you?",
        )
    )
    return (
        f"{thing}{value}",
        statement,
        f"I will remember that your {thing} is {value}.",
        question,
        f"Your {thing} is {value}.",
    )


def _follow_up(rng: random.Random, turns: list[Message]) -> tuple[str, str]:
    """A question about the conversation so far and its answer."""
    first, last_question, last_answer = turns[0].content, turns[-2].content, turns[-1].content
    choices = [
        (
            rng.choice(
                (
                    "Repeat your last answer.",
                    "Say that again.",
                    "Could you repeat that?",
                    "Please repeat what you just said.",
                )
            ),
            last_answer,
        ),
        (rng.choice(("What was my first question?", "What did I say first?", "Repeat my first message.")), first),
        (
            rng.choice(("What was my last question?", "What did I just ask you?", "Repeat my last message.")),
            last_question,
        ),
    ]
    if len(last_answer) < 120:
        choices.append(
            (
                rng.choice(
                    ("Now write that in uppercase.", "Say that in capital letters.", "Again, but in uppercase.")
                ),
                last_answer.upper(),
            )
        )
        choices.append((rng.choice(("Now write that in lowercase.", "Again, but in lowercase.")), last_answer.lower()))
    tail = last_answer.rsplit("= ", 1)[-1]
    if " = " in last_answer and tail.lstrip("-").isdigit() and 0 <= int(tail) <= 99 and rng.random() < 0.7:
        number, add = rng.randint(1, LARGEST_FOLLOW_UP), rng.random() < 0.6
        way = (
            rng.choice((f"Now add {number}.", f"Add {number} to that.", f"Plus {number}?"))
            if add
            else rng.choice((f"Now subtract {number}.", f"Take away {number}.", f"Minus {number}?"))
        )
        return way, f"{tail} {'+' if add else '-'} {number} = {int(tail) + (number if add else -number)}"
    short = [choice for choice in choices if len(choice[1]) < 400]
    return rng.choice(short or [("Thank you!", "You are welcome!")])


def is_practised(equation: str) -> bool:
    """Whether a follow-up such as "Now add 7." can have this sum, in either order, or this difference as its answer."""
    parts = re.fullmatch(r"(\d+) ([+-]) (\d+) = -?\d+", equation)
    if parts is None:
        return False
    added = (parts[1], parts[3]) if parts[2] == "+" else (parts[3],)
    return any(1 <= int(number) <= LARGEST_FOLLOW_UP for number in added)


def dialogue(rng: random.Random) -> Sample:
    """Two to five turns; now and then many more, so that late positions are trained."""
    num_turns = rng.choice((2, 2, 3, 3, 4, 5)) if rng.random() < 0.92 else rng.randint(6, 36)
    turns: list[Message] = []
    keys: list[str] = []
    pending: list[tuple[str, str, str]] = []
    answer = ""
    for place in range(num_turns):
        last = place == num_turns - 1
        kind = rng.random()
        if pending and (kind < 0.3 or (last and kind < 0.6)):
            key, question, answer = pending.pop(rng.randrange(len(pending)))
        elif kind < 0.5 and not last:
            key, question, answer, later, later_answer = _told(rng)
            key = f"told|{key}"
            pending = [item for item in pending if item[2].split(" is ")[0] != later_answer.split(" is ")[0]]
            pending.append((key, later, later_answer))
        elif turns and kind < 0.75:
            question, answer = _follow_up(rng, turns)
            key = f"follow|{question}|{answer}"
        else:
            part = rng.choice(PARTS)(rng)
            while part.system or len(part.messages[0].content) + len(part.answer) > 1800:
                part = rng.choice(PARTS)(rng)
            if last and part.check == "story":
                part = fact(rng)
            key, question, answer = part.keys[-1], part.messages[0].content, part.answer
        keys.append(key)
        turns += [Message("user", question), Message("assistant", answer)]
    return Sample("dialogue", tuple(turns[:-1]), answer, tuple(keys))
