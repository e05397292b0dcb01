"""The fixed table of facts the model is taught (`facts.txt`); knows nothing of how they are asked for."""

from __future__ import annotations

from .banks import sections

_SECTIONS = sections("facts.txt")


def _table(title: str) -> dict[str, str]:
    pairs = (line.partition(": ") for line in _SECTIONS[title].splitlines())
    return {key: value for key, _, value in pairs}


CAPITALS = _table("capitals")  # country: capital
ELEMENTS = _table("elements")  # element: symbol, atomic number
AUTHORS = _table("authors")  # work: author
VALUES = _table("values")  # question subject, asked as "what is ...": answer
