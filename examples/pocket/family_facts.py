"""Questions about the table of facts in several wordings; knows no fact that the table does not hold."""

from __future__ import annotations

import random
from dataclasses import dataclass

from . import facts
from .sample import Sample, ask

BEFORE = (
    "",
    "",
    "",
    "Please tell me: ",
    "Quick question: ",
    "I would like to know: ",
    "Here is a question. ",
    "Answer this: ",
    "Trivia time! ",
    "Hey, ",
)
AFTER = (
    "",
    "",
    "",
    " Thanks!",
    " Please answer.",
    " Do you know?",
    " I forgot.",
    " Keep it short.",
    " One sentence, please.",
    " Thank you.",
)


@dataclass(frozen=True, slots=True)
class Known:
    """One fact: its name for the split, the ways to ask for it and the answer to all of them."""

    name: str
    questions: tuple[str, ...]
    answer: str


def _capital(rng: random.Random) -> Known:
    country, capital = rng.choice(tuple(facts.CAPITALS.items()))
    questions = (
        f"What is the capital of {country}?",
        f"Which city is the capital of {country}?",
        f"Name the capital of {country}.",
        f"Tell me the capital of {country}.",
        f"{country[0].upper()}{country[1:]}'s capital is which city?",
        f"capital of {country}?",
        f"What's the capital city of {country}?",
        f"Do you know the capital of {country}?",
        f"The capital of {country} is?",
    )
    return Known(f"capital {country}", questions, f"The capital of {country} is {capital}.")


def _element(rng: random.Random) -> Known:
    element, data = rng.choice(tuple(facts.ELEMENTS.items()))
    symbol, number = data.split()
    if rng.random() < 0.5:
        questions = (
            f"What is the chemical symbol of {element}?",
            f"Which symbol stands for {element}?",
            f"Tell me the symbol for {element}.",
            f"What is the symbol of the element {element}?",
            f"How is {element} written in chemistry?",
        )
        return Known(f"symbol {element}", questions, f"The chemical symbol of {element} is {symbol}.")
    questions = (
        f"What is the atomic number of {element}?",
        f"Which atomic number does {element} have?",
        f"Tell me the atomic number of {element}.",
        f"How many protons does {element} have?",
        f"atomic number of {element}?",
    )
    return Known(f"number {element}", questions, f"The atomic number of {element} is {number}.")


def _author(rng: random.Random) -> Known:
    work, author = rng.choice(tuple(facts.AUTHORS.items()))
    questions = (
        f"Who wrote {work}?",
        f"Who is the author of {work}?",
        f"Name the author of {work}.",
        f"{work} was written by whom?",
        f"Which author wrote {work}?",
        f"Tell me who wrote {work}.",
        f"Do you know who wrote {work}?",
    )
    return Known(f"author {work}", questions, f"{work} was written by {author}.")


def _value(rng: random.Random) -> Known:
    thing, value = rng.choice(tuple(facts.VALUES.items()))
    questions = (
        f"What is {thing}?",
        f"Tell me {thing}.",
        f"Do you know {thing}?",
        f"Can you name {thing}?",
        f"Please name {thing}.",
        f"I want to know {thing}.",
        f"what's {thing}",
        f"Name {thing}.",
        f"Could you tell me {thing}?",
    )
    return Known(f"value {thing}", questions, f"{thing[0].upper()}{thing[1:]} is {value}.")


def _known(rng: random.Random) -> Known:
    kind = rng.random()
    if kind < 0.3:
        return _capital(rng)
    if kind < 0.45:
        return _element(rng)
    return _author(rng) if kind < 0.6 else _value(rng)


def fact(rng: random.Random) -> Sample:
    """A fact of the table; the pair of fact and wording decides the split."""
    known = _known(rng)
    number = rng.randrange(len(known.questions))
    question = f"{rng.choice(BEFORE)}{known.questions[number]}{rng.choice(AFTER)}"
    return ask("facts", question, known.answer, key=f"{known.name}|{number}")
