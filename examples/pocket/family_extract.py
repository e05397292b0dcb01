"""JSON taken from a sentence; offers no tools."""

from __future__ import annotations

import json
import random

from . import words
from .sample import Message, Sample, ask
from .toolbox import Maker, random_date

EXTRACTED: tuple[tuple[str, str, Maker], ...] = (
    ("name", "{v}", words.full_name),
    ("age", "aged {v}", lambda rng: rng.randint(1, 99)),
    ("city", "from {v}", words.city),
    ("job", "who works as a {v}", lambda rng: rng.choice(words.JOBS)),
    ("item", "who bought a {v}", lambda rng: rng.choice(words.NOUNS)),
    ("price", "for {v} euros", lambda rng: rng.randint(1, 999)),
    ("date", "on {v}", random_date),
    ("email", "with the address {v}", lambda rng: f"{words.word(rng)}@{words.word(rng)}.com"),
    ("order_id", "under number {v}", words.code_string),
    ("colour", "in {v}", lambda rng: rng.choice(words.COLOURS)),
)


def extract(rng: random.Random) -> Sample:
    """Put what a sentence says into a JSON object with the keys or the schema asked for."""
    said = [EXTRACTED[0], *sorted(rng.sample(EXTRACTED[1:], rng.randint(1, 5)), key=EXTRACTED.index)]
    values = {key: make(rng) for key, _, make in said}
    if rng.random() < 0.5:
        values["name"] = words.first_name(rng)
    opening = rng.choice(
        ("", "Today we met ", "The customer is ", "This is about ", "Yesterday we spoke to ", "Our guest was ")
    )
    sentence = opening + " ".join(phrase.format(v=values[key]) for key, phrase, _ in said) + "."
    if rng.random() < 0.5 and "age" in values:
        sentence = sentence.replace(
            f"aged {values['age']}",
            rng.choice((f"is {values['age']} years old and", f"({values['age']})", f"who is {values['age']}")),
        )
    if rng.random() < 0.25:
        sentence = rng.choice((f"{words.sentence(rng)} {sentence}", f"{sentence} {words.sentence(rng)}"))
    wanted = rng.sample(tuple(values), rng.randint(1, len(values)))
    types = {key: "integer" if isinstance(values[key], int) else "string" for key in wanted}
    answer = json.dumps({key: values[key] for key in wanted}, ensure_ascii=False)
    schema = json.dumps(
        {"type": "object", "properties": {key: {"type": types[key]} for key in wanted}, "required": wanted}
    )
    listed = ", ".join(wanted)
    question = rng.choice(
        (
            f"Extract {listed} as JSON: {sentence}",
            f"Extract the {listed} from this sentence as JSON.\n\n{sentence}",
            f"{sentence}\n\nReturn JSON with the keys {listed}.",
            f"Return a JSON object with the keys {listed} for this text: {sentence}",
            f"Give me {listed} as JSON.\nText: {sentence}",
            f"{sentence}\nAnswer with JSON that matches this schema: {schema}",
            f"Extract the data according to this JSON schema:\n{schema}\n\nText: {sentence}",
        )
    )
    system = Message(
        "system",
        rng.choice(
            (
                f"Answer only with JSON that matches this schema: {schema}",
                f"Respond with a JSON object with the keys {listed}.",
            )
        ),
    )
    if rng.random() < 0.12:
        return Sample("extract", (system, Message("user", sentence)), answer, (f"extract|{sentence}",))
    return ask("extract", question, answer, key=sentence)
