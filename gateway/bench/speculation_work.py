"""Kinds of work on which speculation is measured, as chat requests. Knows no server and no time.

The texts are those the bundled model was trained for, so that it, and what `ortserve widen` makes of it, answer with
sense: only then does a reply repeat its prompt, its prediction or another reply as real ones do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

THINGS = ("box", "clock", "lamp", "piano", "ladder", "mirror", "kettle", "violin", "basket", "engine", "drum", "stove")
NAMES = ("Alice", "Boris", "Clara", "David", "Elena", "Frank", "Grace", "Hugo", "Irene", "Jonas", "Karin", "Louis")
CITIES = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Tokyo", "Berlin", "Madrid", "Vienna", "Dublin", "Athens", "Lisbon")
HIGHEST_TEMPERATURE = 2.0
COLOURS = ("red", "green", "blue", "white", "black", "brown", "grey", "yellow", "golden", "silver", "pink", "purple")


@dataclass(frozen=True, slots=True)
class Work:
    """What one request asks."""

    question: str
    prediction: str | None = None  # the client's guess at the whole reply
    is_random: bool = False  # drawn at the highest temperature, to the limit: nothing predicts it

    def fields(self) -> dict[str, Any]:
        """Of the request's body."""
        found: dict[str, Any] = {"messages": [{"role": "user", "content": self.question}]}
        if self.prediction is not None:
            found["prediction"] = {"type": "content", "content": self.prediction}
        if self.is_random:
            found |= {"ignore_eos": True, "temperature": HIGHEST_TEMPERATURE}
        return found


def works(kind: str, seed: int, count: int) -> list[Work]:
    """`count` requests of a kind, which depend on nothing but these arguments and differ from each other."""
    random = Random(f"{kind} {seed}")  # noqa: S311  # text, no secret
    found: dict[Work, None] = {}
    while len(found) < count:
        found[_KINDS[kind](random)] = None
    return list(found)


def _chat(random: Random) -> Work:
    return Work(f"Tell me a short story about {random.choice(NAMES)} and a {_pair(random)}.")


def _editing(random: Random) -> Work:
    text = _text(random)
    return Work(f"Replace the word garden with forest in this text: {text}", prediction=text)


def _copying(random: Random) -> Work:
    """A passage to be found in the prompt and given back."""
    return Work(f"Repeat after me: {_text(random)}")


def _extraction(random: Random) -> Work:
    """Always the same keys: what such a job asks thousands of times."""
    name, city, age = random.choice(NAMES), random.choice(CITIES), random.randint(18, 90)
    person = f"{name} from {city}, aged {age}, who bought a {random.choice(THINGS)} in {random.choice(COLOURS)}"
    return Work(f"Extract name, city, age, item, colour as JSON: Today we met {person}.")


def _random(random: Random) -> Work:
    """Letters without sense, and a reply without any. Its temperature is its own."""
    letters = "".join(random.choice("abcdefghijklmnopqrstuvwxyz     ") for _ in range(160))
    return Work(letters, is_random=True)


def _text(random: Random) -> str:
    name = random.choice(NAMES)
    return (
        f"the {_pair(random)} was found in the garden of {random.choice(CITIES)} and carried to the old bridge where"
        f" {name} waited for the train to {random.choice(CITIES)} with a {random.choice(COLOURS)} coat and a"
        f" {_pair(random)} and a letter for the baker of the village"
    )


def _pair(random: Random) -> str:
    return f"{random.choice(COLOURS)} {random.choice(THINGS)}"


_KINDS: dict[str, Callable[[Random], Work]] = {
    "chat": _chat,
    "editing": _editing,
    "copying": _copying,
    "extraction": _extraction,
    "random": _random,
}
KINDS = tuple(_KINDS)
