"""Synthetic work for drafters, as tokens: prose, edits of it, and records to extract. The same for the same seed."""

from __future__ import annotations

from random import Random

VOCAB_SIZE = 4000
_COMMON = 40  # tokens like punctuation and articles
_WORDS = 800


def prose(num_tokens: int, seed: int) -> list[int]:
    """Words of one to four tokens, few of them frequent, with common tokens in between."""
    words_random, random = Random(0), Random(seed)
    words = [
        [words_random.randrange(_COMMON, VOCAB_SIZE) for _ in range(words_random.randint(1, 4))] for _ in range(_WORDS)
    ]
    tokens: list[int] = []
    while len(tokens) < num_tokens:
        tokens += words[min(int(random.paretovariate(0.5)) - 1, random.randrange(_WORDS))]
        if random.random() < 0.5:
            tokens.append(min(int(random.paretovariate(1.0)) - 1, _COMMON - 1))
    return tokens[:num_tokens]


def edited(tokens: list[int], share: float, seed: int) -> list[int]:
    """One token in 1 / `share` is replaced by one to three, is dropped, or gets one to three before it."""
    random = Random(seed)
    found: list[int] = []
    for token in tokens:
        kind = random.choice(("replace", "replace", "drop", "insert")) if random.random() < share else "keep"
        if kind in ("replace", "insert"):
            found += prose(random.randint(1, 3), random.randrange(1 << 30))
        if kind in ("keep", "insert"):
            found.append(token)
    return found


def records(num_records: int, seed: int) -> tuple[list[int], list[int]]:
    """A table of values in prose, and the JSON that lists them: keys repeat, values are copied from the table."""
    random = Random(seed)
    keys = [[2, *prose(2, 90 + key), 3] for key in range(5)]  # quote, name, quote and colon
    table: list[int] = []
    reply: list[int] = []
    for _ in range(num_records):
        reply.append(4)
        for key in keys:
            value = prose(random.randint(2, 5), random.randrange(1 << 30))
            table += [*value, 5]
            reply += [*key, *value, 6]
        reply.append(7)
        table += prose(6, random.randrange(1 << 30))
    return table, reply
