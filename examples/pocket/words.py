"""Word banks (`words.txt`) and the invented words, names and strings made from them; knows no questions."""

from __future__ import annotations

import random

from .banks import sections

_SECTIONS = sections("words.txt")


def _bank(title: str) -> tuple[str, ...]:
    return tuple(_SECTIONS[title].split())


FIRST_NAMES = _bank("first names")
SURNAMES = _bank("surnames")
CITIES = (*_bank("cities"), *_SECTIONS["cities of two words"].splitlines())
NOUNS = _bank("nouns")
ADJECTIVES = _bank("adjectives")
VERBS_PAST = _bank("verbs past")
ADVERBS = _bank("adverbs")
COLOURS = _bank("colours")
ANIMALS = _bank("animals")
FOODS = _bank("foods")
JOBS = _bank("jobs")
MONTHS = _bank("months")
DAYS = _bank("days")
PLACES = _bank("places")
COMMON = _bank("common")
# What invented words are made of; an empty part is left out.
ONSETS = (*_bank("onsets"), "")
VOWELS = _bank("vowels")
CODAS = (*_bank("codas"), "", "", "")
SYMBOLS = "!@#$%&*()-_=+[]{};:,.<>/?|~"


def invented(rng: random.Random) -> str:
    """A word that no dictionary holds, so that copying it cannot be remembered."""
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 2, 2, 3))))


def word(rng: random.Random) -> str:
    """Any single word: common, picturable, descriptive or invented."""
    bank = rng.random()
    if bank < 0.3:
        return rng.choice(COMMON)
    if bank < 0.55:
        return rng.choice(NOUNS)
    if bank < 0.7:
        return rng.choice(ADJECTIVES)
    return rng.choice(VERBS_PAST) if bank < 0.78 else invented(rng)


def content_word(rng: random.Random) -> str:
    """A word that can be searched for: never a function word."""
    return invented(rng) if rng.random() < 0.3 else rng.choice((*NOUNS, *ADJECTIVES))


def first_name(rng: random.Random) -> str:
    """A given name, one in four invented."""
    return invented(rng).capitalize() if rng.random() < 0.25 else rng.choice(FIRST_NAMES)


def full_name(rng: random.Random) -> str:
    """A given name and a surname."""
    surname = invented(rng).capitalize() if rng.random() < 0.25 else rng.choice(SURNAMES)
    return f"{first_name(rng)} {surname}"


def city(rng: random.Random) -> str:
    """A city, one in five invented."""
    return invented(rng).capitalize() if rng.random() < 0.2 else rng.choice(CITIES)


def code_string(rng: random.Random) -> str:
    """An unusual string: an identifier, a serial number or plain noise."""
    kind = rng.randrange(6)
    if kind == 0:
        return (
            "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(2, 4)))
            + f"-{rng.randint(1, 99999)}"
        )
    if kind == 1:
        return "".join(rng.choice("0123456789abcdef") for _ in range(rng.randint(4, 12)))
    if kind == 2:
        return "".join(
            rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
            for _ in range(rng.randint(3, 10))
        )
    if kind == 3:
        return f"{word(rng)}{rng.choice('_-.:/')}{word(rng)}{rng.randint(0, 99)}"
    if kind == 4:
        return "".join(rng.choice(SYMBOLS + "abcdxyz0189") for _ in range(rng.randint(3, 9)))
    return f"{word(rng)}.{word(rng)}@{word(rng)}.{rng.choice(('com', 'org', 'net', 'io'))}"


def noun_phrase(rng: random.Random) -> str:
    """An article, perhaps an adjective, and a noun."""
    adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.6 else ""
    return f"{rng.choice(('the', 'a', 'my', 'his', 'her', 'our', 'one', 'every'))} {adjective}{rng.choice(NOUNS)}"


def sentence(rng: random.Random) -> str:
    """A plain English sentence with its full stop."""
    kind = rng.randrange(7)
    subject = first_name(rng) if rng.random() < 0.4 else noun_phrase(rng)
    core = f"{subject} {rng.choice(VERBS_PAST)} {noun_phrase(rng)}"
    if kind == 0:
        core += f" in {city(rng)}"
    elif kind == 1:
        core += f" and {rng.choice(VERBS_PAST)} {noun_phrase(rng)}"
    elif kind == 2:
        core = f"on {rng.choice(DAYS)}, {core}"
    elif kind == 3:
        core += f" {rng.choice(ADVERBS)}"
    elif kind == 4:
        core += f" for {rng.randint(2, 99)} {rng.choice(('days', 'minutes', 'euros', 'dollars', 'years'))}"
    elif kind == 5:
        core = f"{subject} said that {noun_phrase(rng)} was {rng.choice(ADJECTIVES)}"
    return core[0].upper() + core[1:] + rng.choice("....!?")


def paragraph(rng: random.Random, num_sentences: int) -> str:
    """Several sentences on one line."""
    return " ".join(sentence(rng) for _ in range(num_sentences))


def code_snippet(rng: random.Random) -> str:
    """A few lines of Python, JavaScript, JSON or a configuration file."""
    a, b, c = rng.choice(NOUNS), word(rng), invented(rng)
    number = rng.randint(0, 500)
    return rng.choice(
        (
            f"def {a}_{b}({c}):\n    return {c} + {number}",
            f"for {c} in range({number}):\n    print({a}, {c})",
            f"const {a} = {number};\nlet {c} = {a} * {rng.randint(2, 9)};",
            f'{{"{a}": "{b}", "{c}": {number}}}',
            f"[{a}]\n{b} = {number}\n{c} = true",
            f"if {a} > {number}:\n    {b} = {c}\nelse:\n    {b} = None",
            f"SELECT {a}, {c} FROM {b} WHERE {a} = {number};",
            f"class {a.capitalize()}:\n    {c}: int = {number}\n\n    def {b}(self) -> int:\n        return self.{c}",
            f'<div class="{a}">\n  <p>{b} {c}</p>\n</div>',
        )
    )
