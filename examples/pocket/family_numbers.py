"""Sums, differences, counting and numbered lists; copies nothing from a passage."""

from __future__ import annotations

import random

from . import words
from .sample import Sample, ask

SUM_FORMS = (
    "What is {a} {o} {b}?",
    "{a} {o} {b}",
    "{a} {o} {b} =",
    "{a} {o} {b} = ?",
    "Calculate {a} {o} {b}.",
    "Compute {a} {o} {b}",
    "How much is {a} {o} {b}?",
    "{a}{o}{b}",
    "{a}{o}{b}=?",
    "Please calculate {a} {o} {b}.",
    "Can you work out {a} {o} {b}?",
    "What do you get for {a} {o} {b}?",
    "Solve: {a} {o} {b}",
    "Tell me what {a} {o} {b} is.",
    "what's {a} {o} {b}",
    "I need the result of {a} {o} {b}.",
    "Quick, {a} {o} {b}!",
    "Give me {a} {o} {b}.",
)
PLUS_FORMS = (
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "{a} plus {b}",
    "Add {b} to {a}.",
    "I have {a} apples and get {b} more. How many apples do I have?",
    "How much is {a} and {b} together?",
    "{n} had {a} coins and found {b} more. How many now?",
)
MINUS_FORMS = (
    "What is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "What is the difference of {a} and {b}?",
    "{a} minus {b}",
    "Take {b} away from {a}.",
    "I have {a} apples and eat {b}. How many are left?",
    "{n} had {a} coins and spent {b}. How many are left?",
    "How much is {a} less {b}?",
)


def arithmetic(rng: random.Random) -> Sample:
    """Sums and differences of numbers below 100; the pair, not its wording, decides the split."""
    a, b = (rng.randint(0, 99 if rng.random() < 0.85 else 9) for _ in range(2))
    minus = rng.random() < 0.5
    worded = rng.random() < 0.4
    if minus and a < b and (worded or rng.random() < 0.6):
        a, b = b, a
    form = rng.choice((MINUS_FORMS if minus else PLUS_FORMS) if worded else SUM_FORMS)
    question = form.format(a=a, b=b, o="-" if minus else "+", n=words.first_name(rng))
    result = a - b if minus else a + b
    answer = f"{a} {'-' if minus else '+'} {b} = {result}"
    # A sum is held out in both orders, so that swapping the numbers of a familiar one is not enough.
    return ask("arithmetic", question, answer, key=f"{a}-{b}" if minus else f"{min(a, b)}+{max(a, b)}")


LISTS = {
    "animals": words.ANIMALS,
    "colours": words.COLOURS,
    "foods": words.FOODS,
    "jobs": words.JOBS,
    "months": words.MONTHS,
    "days": words.DAYS,
}


def counting(rng: random.Random) -> Sample:
    """Counting up, down and in steps; listing known things; counting the items of a list."""
    kind = rng.random()
    if kind < 0.4:
        start, step = rng.choice((0, 1, 1, 1, rng.randint(2, 90))), rng.choice((1, 1, 1, 2, 5, 10))
        end = start + step * rng.choice(
            (rng.randint(2, 12), rng.randint(2, 40), rng.randint(2, 100) if step == 1 else 20)
        )
        numbers = list(range(start, end + 1, step))
        down = rng.random() < 0.3
        low, high = (end, start) if down else (start, end)
        by = f" in steps of {step}" if step > 1 else ""
        way = rng.choice(
            (
                f"Count from {low} to {high}{by}",
                f"Please count from {low} to {high}{by}",
                f"List the numbers from {low} to {high}{by}",
                f"Write the numbers from {low} to {high}{by}",
                f"Can you count {'down ' if down else ''}from {low} to {high}{by}",
            )
        )
        answer = ", ".join(str(number) for number in (reversed(numbers) if down else numbers))
        return ask("counting", way + rng.choice((".", "", "!", ", please.")), answer, key=f"{low} {high} {step}")
    if kind < 0.6:
        name = rng.choice(tuple(LISTS))
        wanted = rng.randint(1, min(12, len(LISTS[name])))
        way = rng.choice(
            (
                f"List {wanted} {name}",
                f"Name {wanted} {name}",
                f"Give me {wanted} {name}",
                f"Tell me {wanted} {name}",
                f"Write down {wanted} {name}",
                f"I need a list of {wanted} {name}",
                f"Please list {wanted} {name}",
                f"Can you name {wanted} {name}",
            )
        )
        answer = "\n".join(f"{place}. {item}" for place, item in enumerate(LISTS[name][:wanted], 1))
        return ask(
            "counting", way + rng.choice((".", "", " please.", ", one per line.", " for me.")), answer, key=f"{way}"
        )
    items = [words.content_word(rng) for _ in range(rng.randint(1, 12))]
    joined = ", ".join(items)
    if kind < 0.8:
        way = rng.choice(
            (
                f"Number these items: {joined}",
                f"Make a numbered list of: {joined}",
                f"Turn this into a numbered list: {joined}",
            )
        )
        return ask("counting", way, "\n".join(f"{place}. {item}" for place, item in enumerate(items, 1)), key=joined)
    way = rng.choice(
        (
            f"How many items are in this list: {joined}?",
            f"Count the items: {joined}",
            f"How many words are here: {joined}?",
        )
    )
    return ask("counting", way, f"There {'is 1 item' if len(items) == 1 else f'are {len(items)} items'}.", key=joined)
