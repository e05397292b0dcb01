"""Questions answered by working on given text: repeating, editing, reversing and quoting; knows no facts."""

from __future__ import annotations

import json
import random

from . import words
from .sample import Message, Sample, ask

REPEAT_BEFORE = (
    "Repeat after me: {t}",
    "Repeat: {t}",
    "Repeat this: {t}",
    "Say: {t}",
    "Please repeat: {t}",
    "Copy this text: {t}",
    'Repeat "{t}"',
    'Say "{t}"',
    "Repeat the following text exactly:\n{t}",
    "Copy the following text word for word:\n\n{t}",
    "Repeat this verbatim:\n\n{t}",
    "Echo: {t}",
    "echo {t}",
    "Write exactly this and nothing else: {t}",
    "Reply with exactly this text: {t}",
    'Please say "{t}" back to me.',
    "{t}\n\nRepeat the text above.",
    "{t}\n\nPlease copy this text exactly.",
    "Output the following:\n```\n{t}\n```",
    "Print this:\n{t}",
    "Give me back this text unchanged: {t}",
)


def copied_text(rng: random.Random, longest: int = 12) -> str:
    """Text to copy: words, names, numbers, odd strings, sentences, a paragraph or code."""
    kind = rng.random()
    if kind < 0.25:
        return " ".join(words.word(rng) for _ in range(rng.randint(1, 16)))
    if kind < 0.4:
        pieces = [
            rng.choice(
                (words.code_string, words.word, words.full_name, lambda r: str(r.randint(0, 10 ** r.randint(1, 7))))
            )(rng)
            for _ in range(rng.randint(1, 8))
        ]
        return rng.choice((" ", " ", ", ", " - ", "\n")).join(pieces)
    if kind < 0.5:
        return " ".join(
            words.invented(rng) if rng.random() < 0.7 else words.invented(rng).capitalize()
            for _ in range(rng.randint(1, 10))
        )
    if kind < 0.6:
        return words.code_snippet(rng)
    if kind < 0.85:
        return words.paragraph(rng, rng.randint(1, 3))
    return words.paragraph(rng, rng.randint(3, longest))


def repeat(rng: random.Random) -> Sample:
    """Give a text back unchanged."""
    text = copied_text(rng, 14 if rng.random() < 0.9 else 60)
    return ask("repeat", rng.choice(REPEAT_BEFORE).format(t=text), text, key=text)


def _placed(rng: random.Random, instruction: str, text: str) -> str:
    """An instruction and the text it is about, in one of several layouts."""
    return rng.choice(
        (
            f"{instruction}: {text}",
            f"{instruction}:\n{text}",
            f"{instruction}:\n\n{text}",
            f'{instruction}: "{text}"',
            f"{text}\n\n{instruction}.",
            f"Text: {text}\n{instruction}.",
            f"{instruction} in the following text:\n\n{text}",
            f"{instruction}.\n\nText:\n{text}",
        )
    )


def _edited_record(rng: random.Random) -> Sample:
    """Change one value of a JSON object, shown on one line or indented."""
    keys = rng.sample(
        ("name", "city", "age", "colour", "id", "status", "price", "owner", "title", "email", "count", "animal"),
        rng.randint(2, 7),
    )
    record: dict[str, object] = {
        key: words.code_string(rng)
        if rng.random() < 0.2
        else (rng.randint(0, 999) if rng.random() < 0.3 else words.word(rng))
        for key in keys
    }
    key = rng.choice(keys)
    value: object = rng.randint(0, 999) if rng.random() < 0.4 else words.word(rng)
    indent = rng.choice((None, None, 2, 4))
    before = json.dumps(record, indent=indent)
    after = json.dumps({**record, key: value}, indent=indent)
    shown = json.dumps(value)
    way = rng.choice(
        (
            f"Change {key} to {shown} in this JSON",
            f"Set {key} to {shown}",
            f'Set the value of "{key}" to {shown}',
            f"In this JSON, change the {key} to {shown}",
        )
    )
    return ask("edit", f"{way}:\n{before}", after, key=f"{key}{value}{before}")


def edit(rng: random.Random) -> Sample:
    """Replace, remove or add a word, change the case, or change a value; everything else stays as it was."""
    if rng.random() < 0.15:
        return _edited_record(rng)
    lengths = (rng.randint(3, 12), rng.randint(3, 12), 0, 0, 0)
    num_words = rng.choice(lengths)
    if num_words:
        text = " ".join(words.word(rng) for _ in range(num_words))
    elif rng.random() < 0.15:
        text = words.code_snippet(rng)
    else:
        text = words.paragraph(rng, rng.choice((1, 1, 1, 2, 2, 3, 3, 5, 8, 12, 24)))
    operation = rng.random()
    if operation < 0.12 and len(text) < 300:
        way = rng.choice(
            (
                "Write this in uppercase",
                "Convert to uppercase",
                "Make this all capital letters",
                "Uppercase this text",
                "Change the text to upper case",
            )
        )
        return ask("edit", _placed(rng, way, text), text.upper(), key=text)
    if operation < 0.22:
        way = rng.choice(
            (
                "Write this in lowercase",
                "Convert to lowercase",
                "Make this all small letters",
                "Lowercase this text",
                "Change the text to lower case",
            )
        )
        return ask("edit", _placed(rng, way, text), text.lower(), key=text)
    candidates = [
        token for token in text.replace("\n", " ").split(" ") if token.isalpha() and f" {token} " in f" {text} "
    ]
    if not candidates:
        return edit(rng)
    target = rng.choice(candidates)
    if operation < 0.35:
        way = rng.choice(
            (
                "Remove the word {w}",
                'Remove the word "{w}"',
                'Delete "{w}"',
                "Delete the word {w}",
                'Leave out the word "{w}"',
            )
        ).format(w=target)
        kept = [token for token in text.split(" ") if token != target]
        if not kept or "\n" in text:
            return edit(rng)
        return ask("edit", _placed(rng, way, text), " ".join(kept), key=way + text)
    new = words.first_name(rng) if target[0].isupper() else words.content_word(rng)
    way = rng.choice(
        (
            'Replace "{a}" with "{b}"',
            "Replace {a} with {b}",
            "Replace the word {a} with {b}",
            'Change "{a}" to "{b}"',
            "Change {a} to {b}",
            'Substitute "{b}" for "{a}"',
            'Swap the word "{a}" for "{b}"',
            "Rename {a} to {b}",
        )
    ).format(a=target, b=new)
    after = "\n".join(
        " ".join(new if token == target else token for token in line.split(" ")) for line in text.split("\n")
    )
    return ask("edit", _placed(rng, way, text), after, key=way + text)


def reverse(rng: random.Random) -> Sample:
    """Give the words of a list or sentence in the opposite order."""
    tokens = [words.word(rng) for _ in range(rng.randint(2, 10))]
    comma = rng.random() < 0.3
    text = (", " if comma else " ").join(tokens)
    way = rng.choice(
        (
            "Reverse the order of the words",
            "Reverse the words",
            "Write these words in reverse order",
            "Say these words backwards, word by word",
            "Reverse the word order",
            "Put these words in the opposite order",
            "List the words from last to first",
        )
    )
    question = rng.choice((f"{way}: {text}", f"{way}:\n{text}", f'{way}: "{text}"', f"{text}\n\n{way}."))
    return ask("reverse", question, (", " if comma else " ").join(reversed(tokens)), key=text)


FIELDS = ("age", "city", "job", "colour", "food", "pet", "code", "score", "phone", "team")


def _field_value(rng: random.Random, field: str) -> str:
    banks = {
        "city": words.CITIES,
        "job": words.JOBS,
        "colour": words.COLOURS,
        "food": words.FOODS,
        "pet": words.ANIMALS,
    }
    if field in banks:
        return words.invented(rng) if rng.random() < 0.15 else rng.choice(banks[field])
    return words.code_string(rng) if field == "code" else str(rng.randint(1, 999999 if field == "phone" else 99))


def _records(rng: random.Random) -> Sample:
    """Look up one field of one record in a list of them."""
    names = list(dict.fromkeys(words.first_name(rng) for _ in range(rng.choice((2, 4, 8, 16, 24, 40)))))
    fields = rng.sample(FIELDS, rng.randint(1, 3))
    rows = {name: {field: _field_value(rng, field) for field in fields} for name in names}
    style = rng.randrange(3)
    if style == 0:
        lines = [
            f"- {name}: " + ", ".join(f"{field} {value}" for field, value in row.items()) for name, row in rows.items()
        ]
    elif style == 1:
        lines = [
            f"{name} | " + " | ".join(f"{field}: {value}" for field, value in row.items()) for name, row in rows.items()
        ]
    else:
        lines = [
            "The " + " and the ".join(f"{field} of {name} is {value}" for field, value in row.items()) + "."
            for name, row in rows.items()
        ]
    name, field = rng.choice(names), rng.choice(fields)
    question = rng.choice(
        (
            f"What is the {field} of {name}?",
            f"Tell me the {field} of {name}.",
            f"Which {field} does {name} have?",
            f"What is {name}'s {field}?",
        )
    )
    return _passage(rng, "\n".join(lines), question, f"The {field} of {name} is {rows[name][field]}.")


def _passage(rng: random.Random, passage: str, question: str, answer: str) -> Sample:
    """A passage and a question about it, in one user turn or with the passage as system prompt."""
    key = f"retrieve|{question}{passage}"
    if rng.random() < 0.15:
        opening = rng.choice(("Use this information to answer:\n", "Answer from this text only:\n\n", "Context:\n"))
        return Sample("retrieve", (Message("system", opening + passage), Message("user", question)), answer, (key,))
    text = rng.choice(
        (
            f"{passage}\n\n{question}",
            f"Read this:\n{passage}\n\nQuestion: {question}",
            f"{question}\n\n{passage}",
            f"Context:\n{passage}\n\n{question}",
            f"Here is some information.\n\n{passage}\n\nNow answer: {question}",
            f"Passage: {passage}\n\n{question}",
        )
    )
    return Sample("retrieve", (Message("user", text),), answer, (key,))


def retrieve(rng: random.Random) -> Sample:
    """Answer by quoting from a passage of up to about 800 tokens."""
    kind = rng.random()
    if kind < 0.5:
        return _records(rng)
    filler = [words.sentence(rng) for _ in range(rng.choice((1, 3, 6, 12, 24, 40, 70, 110)))]
    if kind < 0.75:
        thing, value = (
            rng.choice(("password", "secret word", "code", "key", "PIN", "magic word", "serial number", "access code")),
            words.code_string(rng),
        )
        if rng.random() < 0.5:
            value = words.invented(rng)
        fact = rng.choice((f"The {thing} is {value}.", f"Remember that the {thing} is {value}."))
        filler.insert(rng.randint(0, len(filler)), fact)
        question = rng.choice(
            (f"What is the {thing}?", f"Tell me the {thing}.", f"Which {thing} is mentioned?", f"Find the {thing}.")
        )
        return _passage(rng, " ".join(filler), question, f"The {thing} is {value}.")
    adjective, noun = words.invented(rng), rng.choice(words.NOUNS)
    quoted = f"The {adjective} {noun} {rng.choice(words.VERBS_PAST)} {words.noun_phrase(rng)} in {words.city(rng)}."
    filler.insert(rng.randint(0, len(filler)), quoted)
    question = rng.choice(
        (
            f"Quote the sentence about the {adjective} {noun}.",
            f"Which sentence mentions the {adjective} {noun}?",
            f"What does the text say about the {adjective} {noun}?",
        )
    )
    return _passage(rng, " ".join(filler), question, quoted)
