"""The ways an engine feeds a graph: whole prompts, one by one, in chunks, and side by side. Compares nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ortserve.export.proof.graph_run import GraphRun, RowInput
from ortserve.export.proof.padded_run import PaddedGraphRun
from ortserve.export.proof.paged_run import PagedGraphRun

Floats = NDArray[np.float32]
Sequences = Sequence[Sequence[int]]
Run: TypeAlias = GraphRun | PagedGraphRun | PaddedGraphRun
CHUNKS = (7, 3, 5)
# Tokens of each row in successive ragged steps: decodes, chunks and idle rows, in every combination of neighbours.
RAGGED_STEPS = ((1, 5, 0), (1, 0, 7), (0, 1, 1), (4, 1, 0), (2, 3, 1))


def prefill(run: Run, sequences: Sequences) -> list[Floats]:
    """All of every row at once."""
    return run.run([RowInput(tokens, 0) for tokens in sequences])


def decode(run: Run, sequences: Sequences) -> list[Floats]:
    """One token of every row per run; rows that have ended are idle."""
    return in_steps(run, sequences, ((1,) * len(sequences),))


def chunks(run: Run, sequences: Sequences) -> list[Floats]:
    """A few tokens of every row per run, as long prompts are computed."""
    return in_steps(run, sequences, (CHUNKS,))


def ragged(run: Run, sequences: Sequences) -> list[Floats]:
    """Decodes beside chunks beside idle rows."""
    return in_steps(run, sequences, RAGGED_STEPS)


def in_steps(
    run: Run, sequences: Sequences, pattern: Sequence[Sequence[int]], first_rows: Sequence[int] | None = None
) -> list[Floats]:
    """Feed the rows by the repeated pattern of chunk lengths; logits as if each row had been fed alone at once."""
    first_rows = first_rows or [0] * len(sequences)
    done = [0] * len(sequences)
    pieces: list[list[Floats]] = [[] for _ in sequences]
    for lengths in cycle(pattern):
        if all(fed == len(tokens) for fed, tokens in zip(done, sequences, strict=True)):
            return [np.concatenate(piece) for piece in pieces]
        rows = [
            RowInput(tokens[fed : fed + length], fed, first_row)
            for tokens, fed, length, first_row in zip(sequences, done, lengths, first_rows, strict=True)
        ]
        if not any(row.tokens for row in rows):
            continue  # the rows this step would feed have ended; an empty run is not allowed
        for index, (row, logits) in enumerate(zip(rows, run.run(rows), strict=True)):
            done[index] += len(row.tokens)
            pieces[index].append(logits)
    raise AssertionError("a pattern feeds every row")


FEEDS: Mapping[str, Callable[[Run, Sequences], list[Floats]]] = {
    "prefill": prefill,
    "decode": decode,
    "chunks": chunks,
    "ragged": ragged,
}
